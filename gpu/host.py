"""The engine's process: started, watched, and started again when it dies.

Fronts do not own it. They connect to its `address`, whose listener stays open here while one engine process follows
another, so a front that has lost its engine simply connects again and is heard by the next.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import sys
from contextlib import suppress

import msgspec
import structlog

from .engine import EngineLink, EngineSpec
from .job import ControlSocket, Ready

START_TIMEOUT_S = 120.0  # loading torch and a model from a cold disk
STOP_TIMEOUT_S = 5.0
RESTART_DELAYS_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)

_log = structlog.get_logger(__name__)


class EngineHost:
    """Keeps one engine process running.

    Attributes:
        address: where fronts connect, a name in Linux's abstract socket namespace.
        restarts: times the process was started again.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.address = f"\0aikoryu-{secrets.token_hex(16)}"
        self.restarts = 0
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen()
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: ControlSocket | None = None
        self._ready: asyncio.Future[None] | None = None
        self._restarting: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The engine's process; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Return when the engine has loaded its operations; raised or cancelled, it leaves no process.

        Raises:
            RuntimeError: the system gave no process, or it ended, or was not ready within `START_TIMEOUT_S`; its own
                log says why.
        """
        name = self._spec.called
        try:
            ours = self._launch()
        except OSError as error:
            raise RuntimeError(f"the {name} engine cannot be started: {error}") from error
        self._lifeline = ControlSocket(ours)
        self._ready = self._loop.create_future()
        self._loop.add_reader(ours.fileno(), self._on_readable)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._ready
        except TimeoutError:
            self._disconnect()
            raise RuntimeError(f"the {name} engine was not ready within {START_TIMEOUT_S:.0f} s") from None
        except BaseException:
            self._disconnect()
            raise
        finally:
            self._ready = None

    async def stop(self) -> None:
        """End the process: it leaves by itself when its lifeline closes, and is killed if it does not."""
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait({self._restarting})
        process = self._process
        self._disconnect(kill=self._ready is not None)  # while it starts it would not look at its lifeline for seconds
        self._listener.close()
        if process is not None and process.poll() is None:
            try:
                await _ended(process, STOP_TIMEOUT_S)
            finally:  # also when whoever waits gives up
                process.kill()
                process.wait()

    def _launch(self) -> socket.socket:
        """Start the process; return our end of its lifeline. Nothing is left open by what it raises."""
        ours, theirs = socket.socketpair()
        fds = [theirs.fileno(), self._listener.fileno()]
        # Libraries size their thread pools when they load, so the bound is in the environment before that.
        threads = str(self._spec.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as the driver counts, see `nvml.visible`
        spec = msgspec.json.encode(self._spec).decode()
        command = [sys.executable, "-m", "aikoryu.gpu.child", *map(str, fds), spec]
        try:
            self._process = _spawn(command, fds, environment)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return ours

    def _on_readable(self) -> None:
        assert self._lifeline is not None, "the reader is removed with the socket"
        with suppress(BlockingIOError):
            try:
                for message in self._lifeline.receive():
                    if isinstance(message, Ready) and self._ready is not None and not self._ready.done():
                        self._ready.set_result(None)
            except (EOFError, ConnectionError):
                self._on_death()

    def _on_death(self) -> None:
        starting, process = self._ready, self._process
        self._disconnect()
        code = process.wait() if process is not None else None
        if starting is None:
            _log.error("engine lost", engine=self._spec.called, exit_code=code)
            self._restarting = self._loop.create_task(self._restart())
        elif not starting.done():
            died = RuntimeError(f"the {self._spec.called} engine ended while starting, exit code {code}")
            starting.set_exception(died)

    async def _restart(self) -> None:
        attempt = 0
        while True:
            await asyncio.sleep(RESTART_DELAYS_S[min(attempt, len(RESTART_DELAYS_S) - 1)])
            attempt += 1
            self.restarts += 1
            try:
                await self.start()
            except RuntimeError as error:
                _log.error("engine not restarted", engine=self._spec.called, attempt=attempt, error=str(error))
            else:
                _log.info("engine restarted", engine=self._spec.called, attempt=attempt)
                return

    def _disconnect(self, kill: bool = True) -> None:
        if self._lifeline is not None:
            self._loop.remove_reader(self._lifeline.sock.fileno())
            self._lifeline.sock.close()
            self._lifeline = None
        if self._process is not None and kill:
            self._process.kill()
            self._process.wait()
        self._process = None


async def _ended(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Return when a process has ended, or the time is over."""
    fd = os.pidfd_open(process.pid)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        async with asyncio.timeout(timeout_s):
            await ended.wait()
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _spawn(command: list[str], fds: list[int], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process from this thread: it is told to die when the thread that started it does.

    It has a session of its own, so Ctrl-C in a terminal reaches the front alone, which drains first.
    """
    return subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)


class ChildEngine(EngineLink):
    """An engine of one front's own: the process, and the connection to it.

    Attributes:
        host: keeps the process.
    """

    def __init__(self, spec: EngineSpec, slots: int, slab_bytes: int) -> None:
        self.host = EngineHost(spec)
        super().__init__(self.host.address, spec.called, slots, slab_bytes)

    async def start(self) -> None:
        """Return when the engine takes batches.

        Raises:
            RuntimeError: the engine did not start; its own log says why.
        """
        await self.host.start()
        await super().start()

    async def stop(self) -> None:
        """End the engine; batches handed over are not waited for."""
        await super().stop()
        await self.host.stop()
