"""The demo's processes: a task comes in as a line of JSON on stdin, messages go back as lines on stdout.

A closed stdin asks a process to finish. None outlives the demo: the kernel ends them (SIGKILL) with the process that
started them, however that one dies.
"""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Generic, TypeVar

import msgspec
import uvloop

from .failure import Failed
from .lines import LINE_BYTES, pipe

FINISH_S = 40.0  # a worker may take `worker.drain_s` to answer what it has accepted
_PR_SET_PDEATHSIG = 1

Task = TypeVar("Task")
Said = TypeVar("Said")


class Child(Generic[Said]):
    """A process of the demo, from outside; made by `child`.

    Attributes:
        pid: its number.
    """

    def __init__(self, name: str, process: Process, says: type[Said]) -> None:
        self.pid = process.pid
        self._name = name
        self._process = process
        self._says = says

    async def hear(self) -> Said | None:
        """The next thing it says; None when it has ended well.

        Raises:
            Failed: it ended in another way; its own words are on stderr.
        """
        assert self._process.stdout is not None, "it was started with pipes"
        if line := await self._process.stdout.readline():
            return msgspec.json.decode(line, type=self._says)
        if code := await self._process.wait():
            raise Failed(f"the demo's {self._name} ended with status {code}; the reason is above")
        return None

    def finish(self) -> None:
        """Ask it to finish; it may still have something to say."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def finished(self) -> None:
        """Ask it to finish, and return when it has ended."""
        self.finish()
        with suppress(TimeoutError):
            async with asyncio.timeout(FINISH_S):
                await self._process.wait()


@asynccontextmanager
async def child(name: str, module: str, task: object, says: type[Said]) -> AsyncIterator[Child[Said]]:
    """Run a module of this package as a process, and end it at exit.

    Args:
        name: what it is to a reader.
        module: its name; its `main` calls `be_child`.
        task: what it shall do.
        says: type of what it says.
    """
    process = await asyncio.create_subprocess_exec(
        # With -m the module would be run a second time, for this package imports it.
        *(sys.executable, "-c", f"import {__package__}.{module} as child; child.main()"),
        stdin=PIPE,
        stdout=PIPE,
        limit=LINE_BYTES,
        start_new_session=True,  # Ctrl-C reaches the demo alone, which ends its processes in the right order
    )
    try:
        assert process.stdin is not None, "it was started with pipes"
        process.stdin.write(msgspec.json.encode(task) + b"\n")
        yield Child(name, process, says)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def be_child(task: type[Task], run: Callable[[Task, asyncio.Event], Awaitable[None]]) -> None:
    """Be such a process: read a task from stdin and run it, with an event that asks to finish."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    async def read_and_run() -> None:
        asked = asyncio.Event()
        async with pipe(sys.stdin.fileno()) as stdin:
            line = await stdin.readline()
            if not line:
                return  # the demo ended before it could say what to do

            async def watch() -> None:
                await stdin.read()
                asked.set()

            watching = asyncio.create_task(watch())
            await run(msgspec.json.decode(line, type=task), asked)
            watching.cancel()

    uvloop.run(read_and_run())


def tell(message: object) -> None:
    """Say something to the demo."""
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()
