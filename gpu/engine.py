"""Engines: what a front hands batches to.

An engine is a process of its own (`host.py` starts it, `child.py` is it), so that a crash or a poisoned context ends it
alone. `EngineLink` is a front's connection to one; several fronts may have one each. `inline.py` has the in-process
twin; both run the same `Executor` over the same slabs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Protocol

import msgspec
import structlog

from ..bus.faults import to_come
from ..config import LogSettings
from .job import ControlSocket, Done, Hello, Inject, Job, Ready, Report
from .registry import Catalogue
from .slab import TIME, Slab

CONNECT_AGAIN_S = 0.1
MOST_REFUSALS = 5  # of a front that starts: its engine takes no slabs of its

_log = structlog.get_logger(__name__)


class EngineSpec(msgspec.Struct, frozen=True):
    """What an engine process must know to start.

    Attributes:
        device: which device, `cpu` or `cuda:0`.
        threads: threads an operation computes with on the host.
        streams: batches that run at the same time.
        catalogue: the operations it loads.
        log: how it writes its log.
        name: what the log, replies and metrics call it; empty for the device's name.
        faults: whether fronts may have it misbehave.
    """

    device: str
    threads: int
    streams: int
    catalogue: Catalogue
    log: LogSettings
    name: str = ""
    faults: bool = False

    @property
    def called(self) -> str:
        """Its name."""
        return self.name or self.device


class Engine(Protocol):
    """Where batches run.

    Attributes:
        name: what replies and metrics call it.
        slots: batches it takes at once.
        slabs: the memory it shares with the front, one more than slots: one is being answered from.
        on_done: called with each batch's end.
        on_lost: called when the engine died; batches handed over have no answer. It is started again by itself.
        on_ready: called when it takes batches, first and after each loss.
        restarts: times it was lost and came back.
        figures: what it last reported of its memory, by name.
    """

    name: str
    slots: int
    slabs: list[Slab]
    on_done: Callable[[Done], None]
    on_lost: Callable[[], None]
    on_ready: Callable[[], None]
    restarts: int
    figures: Mapping[str, float]

    @property
    def began(self) -> float:
        """When it last began a batch, whosever, monotonic time, s."""

    async def start(self) -> None:
        """Return when the engine has loaded its operations and takes batches."""

    def submit(self, job: Job) -> None:
        """Hand over a batch that lies in a slab."""

    def kill(self) -> None:
        """End the engine's process at once; its loss is reported as always."""

    def inject(self, order: Inject) -> None:
        """Let it misbehave, now and whenever it comes back."""

    async def stop(self) -> None:
        """Let go of the engine; batches handed over are not waited for."""


def no_event(*_: object) -> None:
    """Before a front listens, nothing happens."""


class EngineLink:
    """A front's connection to an engine process. See `Engine`.

    Args:
        address: of the engine's host.
        name: what replies and metrics call it.
        slots: batches to hand over at once.
        slab_bytes: size of each slab.
    """

    def __init__(self, address: str, name: str, slots: int, slab_bytes: int) -> None:
        self.name = name
        self.slots = slots
        self.slabs = [Slab.create(slab_bytes) for _ in range(slots + 1)]
        self.on_done: Callable[[Done], None] = no_event
        self.on_lost: Callable[[], None] = no_event
        self.on_ready: Callable[[], None] = no_event
        self.restarts = 0
        self.figures: Mapping[str, float] = {}
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._control: ControlSocket | None = None
        self._pid = 0
        self._pulse: Slab | None = None
        self._ready: asyncio.Future[None] | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._refused = 0
        self._order = Inject("", [])

    @property
    def began(self) -> float:
        """When it last began a batch, whosever, monotonic time, s; 0 while there is no engine."""
        return self._pulse.stamped(0) if self._pulse is not None else 0.0

    async def start(self) -> None:
        """Return when the engine takes batches: it may be starting, or be between two lives.

        Raises:
            OSError: nobody keeps an engine at the address.
            RuntimeError: the engine turns this front away.
        """
        self._ready = self._loop.create_future()
        self._connect()
        try:
            await self._ready
        except BaseException:
            self._disconnect()
            raise

    def submit(self, job: Job) -> None:
        """Hand over a batch; where that fails the engine is given up, and its loss is reported as always, later."""
        self._send(job)

    def kill(self) -> None:
        """End the engine's process at once; its loss is reported as always."""
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def inject(self, order: Inject) -> None:
        """Let the engine misbehave, now and whenever it comes back: a fresh process knows nothing of it."""
        self._order = order
        if self._pid:
            self._send(order)

    async def stop(self) -> None:
        """Close the connection and give the slabs back."""
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        self._disconnect()
        for slab in self.slabs:
            slab.close()

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self._address)
            control = ControlSocket(sock)
            control.greet(Hello(self.slabs[0].size_bytes), [slab.fd for slab in self.slabs])
        except BaseException:
            sock.close()
            raise
        sock.setblocking(False)
        self._control = control
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        assert self._control is not None, "the reader is removed with the socket"
        try:
            if self._pulse is None:
                self._on_connected(*self._control.receive_greeting(Ready))
                return
            for message in self._control.receive():
                if isinstance(message, Done):
                    self.on_done(message)
                elif isinstance(message, Report):
                    self.figures = message.figures
        except BlockingIOError:
            return
        except (EOFError, OSError):
            self._on_end()

    def _on_connected(self, ready: Ready, fds: list[int]) -> None:
        (pulse,) = fds
        self._pulse = Slab(pulse, TIME.size)
        self._pid = ready.pid
        rules = to_come(self._order.rules, monotonic())
        if rules:
            self._send(Inject(self._order.name, rules))
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)
        self.on_ready()

    def _send(self, message: Job | Inject) -> None:
        assert self._control is not None, "the engine is started before it is sent anything"
        try:
            self._control.send(message)
        except OSError as error:
            _log.warning("batch not handed over", engine=self.name, error=str(error))
            # Half a message may have left: nothing can follow it. What the engine has answered is read before its end.
            with suppress(OSError):
                self._control.sock.shutdown(socket.SHUT_RDWR)
            self.kill()

    def _on_end(self) -> None:
        served = self._pid != 0
        self._disconnect()
        if served:
            # The engine may be alive and still write into the old ones, if it was the connection that broke. They go
            # first: there may be no descriptors but theirs.
            sizes = [slab.size_bytes for slab in self.slabs]
            while self.slabs:
                self.slabs.pop().close()
            self.slabs += map(Slab.create, sizes)
            self._refused = 0
            self.on_lost()
            self.restarts += 1
        else:
            self._refused += 1
            if self._refused >= MOST_REFUSALS and self._ready is not None and not self._ready.done():
                self._ready.set_exception(RuntimeError(f"the {self.name} engine does not take this front; see its log"))
                return
        self._reconnecting = self._loop.create_task(self._reconnect(0.0 if served else CONNECT_AGAIN_S))

    async def _reconnect(self, rest_s: float) -> None:
        """Connect again; the connection waits in the listener's queue until the next engine process accepts it."""
        await asyncio.sleep(rest_s)
        while True:
            try:
                self._connect()
            except OSError:
                await asyncio.sleep(CONNECT_AGAIN_S)
            else:
                return

    def _disconnect(self) -> None:
        self._pid = 0
        if self._pulse is not None:
            self._pulse.close()
            self._pulse = None
        if self._control is not None:
            self._loop.remove_reader(self._control.sock.fileno())
            self._control.sock.close()
            self._control = None
