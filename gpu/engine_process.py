"""One process of an engine, as its host sees it: started, told to serve, and ended."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import msgspec

from .engine import EngineSpec
from .job import Begin, ControlSocket, Ready

START_TIMEOUT_S = 120.0  # loading torch and a model from a cold disk
STOP_TIMEOUT_S = 5.0
LOOK_S = 0.005  # between two looks whether it has ended


class EngineProcess:
    """A process that loads an engine's operations, and serves when it is told to.

    Args:
        spec: what it is to be.
        listener: where its fronts connect.
        on_end: called when it ends after it has loaded.

    Raises:
        OSError: the system gives no process; nothing is left open.
    """

    def __init__(self, spec: EngineSpec, listener: socket.socket, on_end: Callable[[EngineProcess], None]) -> None:
        self._name = spec.called
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        ours, theirs = socket.socketpair()
        fds = [theirs.fileno(), listener.fileno()]
        # Libraries size their thread pools when they load, so the bound is in the environment before that.
        threads = str(spec.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as the driver counts, see `nvml.visible`
        command = [sys.executable, "-m", "aikoryu.gpu.child", *map(str, fds), msgspec.json.encode(spec).decode()]
        try:
            self._process = _spawn(command, fds, environment)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._lifeline: ControlSocket | None = ControlSocket(ours)
        self._loop.add_reader(ours.fileno(), self._on_readable)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    async def load(self) -> None:
        """Return when it has loaded its operations; raised or cancelled, there is no process.

        Raises:
            RuntimeError: it ended, or has not loaded within `START_TIMEOUT_S`; its own log says why.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._loaded
        except TimeoutError:
            await self._give_up()
            raise RuntimeError(f"the {self._name} engine was not ready within {START_TIMEOUT_S:.0f} s") from None
        except EOFError:
            code = await self._give_up()
            raise RuntimeError(f"the {self._name} engine ended while starting, exit code {code}") from None
        except BaseException:
            self.kill()
            raise

    def begin(self) -> None:
        """Let it serve; should it have ended, that is told as always."""
        assert self._lifeline is not None, "it has not ended"
        with suppress(OSError):
            self._lifeline.send(Begin())

    def kill(self) -> None:
        """End it at once. Idempotent."""
        self._close()
        self._process.kill()
        self._process.wait()

    async def end(self) -> None:
        """End it: it leaves by itself when its lifeline closes, and is killed if it does not."""
        self._close()
        try:
            await self._ended()
        finally:  # also when whoever waits gives up
            self.kill()

    async def exit_code(self) -> int | None:
        """The code of a process that was killed or has ended; None if a device does not let go of it."""
        await self._ended()
        return self._process.poll()

    async def _give_up(self) -> int | None:
        """Kill it; its exit code. Others are served by this loop meanwhile."""
        self._close()
        self._process.kill()
        try:
            return await self.exit_code()
        finally:  # also when whoever waits gives up
            self.kill()

    def _on_readable(self) -> None:
        assert self._lifeline is not None, "the reader is removed with the socket"
        with suppress(BlockingIOError):
            try:
                for message in self._lifeline.receive():
                    if isinstance(message, Ready) and not self._loaded.done():
                        self._loaded.set_result(None)
            except (EOFError, ConnectionError):
                self._on_eof()

    def _on_eof(self) -> None:
        self._close()
        self._process.kill()
        if self._loaded.done():
            self._on_end(self)
        else:
            self._loaded.set_exception(EOFError)

    def _close(self) -> None:
        if self._lifeline is not None:
            self._loop.remove_reader(self._lifeline.sock.fileno())
            self._lifeline.sock.close()
            self._lifeline = None

    async def _ended(self) -> None:
        """Return when it has ended, or the time for it is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                while self._process.poll() is None:  # noqa: ASYNC110 - an event needs a descriptor; none may be left
                    await asyncio.sleep(LOOK_S)


def _spawn(command: list[str], fds: list[int], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process from this thread: it is told to die when the thread that started it does.

    It has a session of its own, so Ctrl-C in a terminal reaches the front alone, which drains first.
    """
    return subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)
