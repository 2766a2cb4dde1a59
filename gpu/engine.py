"""Engines: what a front hands batches to.

`ChildEngine` is the real one, a process of its own: a crash or a poisoned context ends it alone, and it is started
again. An operation that hangs is not ended by itself yet, only with the worker. `inline.py` has its in-process twin;
both run the same `Executor` over the same slabs.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import msgspec
import structlog

from ..config import LogSettings
from .job import ControlSocket, Done, Job, Ready
from .registry import Catalogue
from .slab import Slab

START_TIMEOUT_S = 120.0  # loading torch and a model from a cold disk
STOP_TIMEOUT_S = 5.0
RESTART_DELAYS_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)

_log = structlog.get_logger(__name__)


class EngineSpec(msgspec.Struct, frozen=True):
    """What an engine process must know to start.

    Attributes:
        device: which device, `cpu`.
        threads: threads an operation computes with.
        slots: batches handed over at once, one running and the others staged ahead.
        slab_bytes: size of each slab.
        catalogue: the operations it loads.
        log: how it writes its log.
    """

    device: str
    threads: int
    slots: int
    slab_bytes: int
    catalogue: Catalogue
    log: LogSettings


class Engine(Protocol):
    """Where batches run.

    Attributes:
        name: the device, as replies name it.
        slots: batches it takes at once.
        slabs: the memory it shares with the front, one more than slots: one is being answered from.
        on_done: called with each batch's end.
        on_lost: called when the engine died; batches handed over have no answer. It is started again by itself.
        on_ready: called when it takes batches, first and after each loss.
        restarts: times it was started again.
    """

    name: str
    slots: int
    slabs: list[Slab]
    on_done: Callable[[Done], None]
    on_lost: Callable[[], None]
    on_ready: Callable[[], None]
    restarts: int

    async def start(self) -> None:
        """Return when the engine has loaded its operations and takes batches."""

    def submit(self, job: Job) -> None:
        """Hand over a batch that lies in a slab."""

    async def stop(self) -> None:
        """End the engine; batches handed over are not waited for."""


def no_event(*_: object) -> None:
    """Before a front listens, nothing happens."""


class ChildEngine:
    """An engine in a process of its own, restarted when it dies. See `Engine`."""

    def __init__(self, spec: EngineSpec) -> None:
        self.name = spec.device
        self.slots = spec.slots
        self.slabs = [Slab.create(spec.slab_bytes) for _ in range(spec.slots + 1)]
        self.on_done: Callable[[Done], None] = no_event
        self.on_lost: Callable[[], None] = no_event
        self.on_ready: Callable[[], None] = no_event
        self.restarts = 0
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: ControlSocket | None = None
        self._ready: asyncio.Future[None] | None = None
        self._starting = False
        self._restarting: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def pid(self) -> int:
        """The engine's process; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Return when the engine takes batches; raised or cancelled, it leaves no process.

        Raises:
            RuntimeError: the system gave no process, or it ended, or was not ready within `START_TIMEOUT_S`; its own
                log says why.
        """
        try:
            ours = self._launch()
        except OSError as error:
            raise RuntimeError(f"the {self.name} engine cannot be started: {error}") from error
        self._starting = True
        self._control = ControlSocket(ours)
        self._ready = self._loop.create_future()
        self._loop.add_reader(ours.fileno(), self._on_readable)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._ready
        except TimeoutError:
            self._disconnect()
            raise RuntimeError(f"the {self.name} engine was not ready within {START_TIMEOUT_S:.0f} s") from None
        except BaseException:
            self._disconnect()
            raise
        self.on_ready()

    def submit(self, job: Job) -> None:
        """Hand over a batch; where that fails the engine is given up, and its loss is reported as always, later."""
        assert self._control is not None, "the engine is started before it gets a batch"
        try:
            self._control.send(job)
        except OSError as error:
            _log.warning("batch not handed over", engine=self.name, error=str(error))
            # Half a message may have left: nothing can follow it. What the engine has answered is read before its end.
            with suppress(OSError):
                self._control.sock.shutdown(socket.SHUT_RDWR)

    async def stop(self) -> None:
        """End the process: it leaves by itself when its socket closes, and is killed if it does not."""
        self._stopping = True
        if self._restarting is not None:
            self._restarting.cancel()
        process = self._process
        self._disconnect(kill=self._starting)  # while it starts it would not look at its socket for seconds
        if process is not None:
            try:
                await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for slab in self.slabs:
            slab.close()

    def _launch(self) -> socket.socket:
        """Start the process; return our end of its control socket. Nothing is left open by what it raises."""
        ours, theirs = socket.socketpair()
        fds = [theirs.fileno(), *(slab.fd for slab in self.slabs)]
        arguments = [",".join(map(str, fds)), msgspec.json.encode(self._spec).decode()]
        # Libraries size their thread pools when they load, so the bound is in the environment before that.
        threads = str(self._spec.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}
        command = [sys.executable, "-m", "aikoryu.gpu.child", *arguments]
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
        assert self._control is not None, "the reader is removed with the socket"
        try:
            for message in self._control.receive():
                if isinstance(message, Done):
                    self.on_done(message)
                elif isinstance(message, Ready) and self._ready is not None and not self._ready.done():
                    self._starting = False
                    self._ready.set_result(None)
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self._on_death()

    def _on_death(self) -> None:
        starting, process = self._starting, self._process
        self._disconnect()
        code = process.wait() if process is not None else None
        if starting:
            if self._ready is not None and not self._ready.done():
                died = RuntimeError(f"the {self.name} engine ended while starting, exit code {code}")
                self._ready.set_exception(died)
            return
        _log.error("engine lost", engine=self.name, exit_code=code)
        self.on_lost()
        if not self._stopping:
            self._restarting = self._loop.create_task(self._restart())

    async def _restart(self) -> None:
        attempt = 0
        while True:
            await asyncio.sleep(RESTART_DELAYS_S[min(attempt, len(RESTART_DELAYS_S) - 1)])
            attempt += 1
            self.restarts += 1
            try:
                await self.start()
            except RuntimeError as error:
                _log.error("engine not restarted", engine=self.name, attempt=attempt, error=str(error))
            else:
                _log.info("engine restarted", engine=self.name, attempt=attempt)
                return

    def _disconnect(self, kill: bool = True) -> None:
        self._starting = False
        if self._control is not None:
            self._loop.remove_reader(self._control.sock.fileno())
            self._control.sock.close()
            self._control = None
        if self._process is not None and kill:
            self._process.kill()
            self._process.wait()
        self._process = None


def _spawn(command: list[str], fds: list[int], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process from this thread: it is told to die when the thread that started it does.

    It has a session of its own, so Ctrl-C in a terminal reaches the front alone, which drains first.
    """
    return subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)
