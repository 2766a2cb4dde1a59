"""A process that serves beside the one that started it, and both ends of the pipes between them.

Its spec is the first line of its standard input. It says `ready` on its standard output when it serves, and drains and
ends when standard input is closed. Meanwhile each may say lines, of which the other keeps the last; who does not read
is told no more, and holds up nobody.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Generic, NoReturn, Self, TypeVar

import msgspec
import structlog

from .lifetime import end_with_parent

RESTART_DELAYS_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
STEADY_S = 30.0  # one that lived so long is started again at once
CHUNK_BYTES = 1 << 16

_READY = b"ready\n"

_log = structlog.get_logger(__name__)

Spec = TypeVar("Spec", bound=msgspec.Struct)


class ChildProcess:
    """A process that serves, as who started it sees it; `start` makes one.

    Attributes:
        pid: its number.
        told: the last line that it said, without its end; empty before the first.
    """

    def __init__(self, process: Process, name: str, end_within_s: float) -> None:
        self.pid = process.pid
        self.told = b""
        self._hearing: asyncio.Task[None] | None = None
        self._process = process
        self._name = name
        self._end_within_s = end_within_s

    @classmethod
    async def start(
        cls,
        module: str,
        spec: msgspec.Struct,
        name: str,
        *,
        start_within_s: float,
        end_within_s: float,
        environment: Mapping[str, str] = {},
    ) -> Self:
        """Start a process, and wait until it serves; raised or cancelled, it leaves none.

        Args:
            module: of its `main`.
            spec: what it must know.
            name: what errors call it: "front 0".
            start_within_s: longest wait until it serves, s.
            end_within_s: longest wait until it has ended, s.
            environment: variables beside those of this process.

        Raises:
            RuntimeError: the system gave no process, or it ended, or did not serve in time; its own log says why.
        """
        # What it must know goes through a pipe: the command line, which every user can read, would show passwords.
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", module),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
                env={**os.environ, **environment},
            )
        except OSError as error:
            raise RuntimeError(f"{name} cannot be started: {error}") from error
        started = cls(process, name, end_within_s)
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        process.stdin.write(msgspec.json.encode(spec) + b"\n")
        try:
            async with asyncio.timeout(start_within_s):
                ready = await process.stdout.readline()
        except TimeoutError:
            await started.kill()
            raise RuntimeError(f"{name} did not serve within {start_within_s:g} s") from None
        except BaseException:
            await started.end()  # it may have accepted something already
            raise
        if not ready:
            raise RuntimeError(f"{name} ended while starting, exit code {await process.wait()}")
        started._hearing = asyncio.create_task(started._hear(process.stdout))
        return started

    def tell(self, line: bytes) -> None:
        """Say a line, unless it is ending, or has not read what was said before.

        Args:
            line: with its end.
        """
        stdin = self._process.stdin
        if stdin is not None and not stdin.is_closing() and not stdin.transport.get_write_buffer_size():
            stdin.write(line)

    async def ended(self) -> int:
        """Wait until it has ended; its exit code."""
        return await self._process.wait()

    async def end(self) -> int:
        """Ask it to drain and end, and kill it if it does not in time; its exit code."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(self._end_within_s):
                await self._process.wait()
        except TimeoutError:
            _log.error("process did not end", process=self._name, pid=self.pid)
        finally:
            await self.kill()
        return await self._process.wait()

    async def kill(self) -> None:
        """See to it that it has ended. Idempotent."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._hearing is not None:
            await self._hearing

    async def _hear(self, stdout: asyncio.StreamReader) -> None:
        """Listen to the end: before that the loop does not say that the process has ended."""
        async for line in _heard(stdout):
            self.told = line


class Parent(Generic[Spec]):
    """The process that started this one, as this one sees it.

    What a terminal or service manager sends to every process is ignored: the parent decides. What is printed goes to
    standard error, for it is no word for the parent.

    Args:
        type: of the spec.

    Attributes:
        spec: what the parent said that this process is to be.
        told: the last line that the parent said since then, without its end; empty before the first.
    """

    def __init__(self, type: type[Spec]) -> None:  # noqa: A002 - as msgspec calls it
        end_with_parent()
        self._to_parent = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self.told = b""
        self.spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=type)

    def ready(self) -> None:
        """Tell the parent that this process serves."""
        os.write(self._to_parent, _READY)

    async def keep_telling(self, line: Callable[[], bytes], every_s: float) -> NoReturn:
        """Say a line now and then, once this process serves, until this is cancelled.

        Args:
            line: with its end; not called while the parent has not read the one before.
            every_s: s.
        """
        pipe, _ = await asyncio.get_running_loop().connect_write_pipe(
            asyncio.Protocol, os.fdopen(self._to_parent, "wb", buffering=0)
        )
        try:
            while True:
                if not pipe.get_write_buffer_size():
                    pipe.write(line())
                await asyncio.sleep(every_s)
        finally:
            pipe.abort()

    async def wants_end(self) -> None:
        """Return when standard input is closed: the parent asks for the end, or is gone."""
        reader = asyncio.StreamReader()
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        async for line in _heard(reader):
            self.told = line
        pipe.close()


async def _heard(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The last whole line, without its end, whenever there is a later one; of any length."""
    rest = b""
    while chunk := await reader.read(CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines[-1]
