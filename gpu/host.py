"""The host: keeps an engine, started again when its process dies, and in reserve a second process if wanted.

Fronts do not own the engine. They connect to its `address`, whose listener stays open here while one process follows
another, so a front that has lost its engine simply connects again and is heard by the next. The process in reserve has
loaded everything and only waits for the word to serve.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from contextlib import suppress

import structlog

from .child_process import RESTART_DELAYS_S
from .engine import EngineLink, EngineSpec
from .engine_process import EngineProcess

_log = structlog.get_logger(__name__)


class EngineHost:
    """Keeps one engine running.

    Args:
        spec: of its processes.
        reserve: whether a second one is kept that takes over when the first dies.

    Attributes:
        address: where fronts connect, a name in Linux's abstract socket namespace.
        restarts: times a process took the place of one that died, or was started for it in vain.
    """

    def __init__(self, spec: EngineSpec, reserve: bool = False) -> None:
        self.address = f"\0aikoryu-{secrets.token_hex(16)}"
        self.restarts = 0
        self._spec = spec
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen()
        self._serving: EngineProcess | None = None
        self._reserve: EngineProcess | None = None
        self._loading: EngineProcess | None = None
        self._dead: list[EngineProcess] = []
        self._wants_reserve = reserve
        self._reserve_losses = 0  # in a row: what the memory has no room for must not be tried again and again
        self._filling: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()

    @property
    def pid(self) -> int:
        """The process that serves or, while there is none, that is about to; 0 if there is no such either."""
        process = self._serving or self._loading
        return process.pid if process is not None else 0

    @property
    def reserve_pid(self) -> int:
        """The process in reserve, once it could take over; 0 while there is none."""
        return self._reserve.pid if self._reserve is not None else 0

    async def start(self) -> None:
        """Return when the engine has loaded its operations; raised or cancelled, it leaves no process.

        The process in reserve is started then, and not waited for.

        Raises:
            RuntimeError: the system gave no process, or it ended, or was not ready in time; its own log says why.
        """
        self._serve(await self._load())
        if self._wants_reserve:
            self._filling = asyncio.create_task(self._fill())

    async def stop(self) -> None:
        """End the processes."""
        processes = [process for process in (self._serving, self._reserve) if process is not None]
        self._serving = self._reserve = None
        if self._loading is not None:
            self._loading.kill()  # it would not look at its lifeline for seconds
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait({self._filling})
        self._listener.close()
        await asyncio.gather(*(process.end() for process in [*processes, *self._dead]))

    async def _load(self) -> EngineProcess:
        """A process that has loaded its operations.

        Raises:
            RuntimeError: as for `start`.
        """
        try:
            process = EngineProcess(self._spec, self._listener, self._on_end)
        except OSError as error:
            raise RuntimeError(f"the {self._spec.called} engine cannot be started: {error}") from error
        self._loading = process
        try:
            await process.load()
        finally:
            self._loading = None
        return process

    def _serve(self, process: EngineProcess) -> None:
        self._serving = process
        process.begin()

    def _on_end(self, process: EngineProcess) -> None:
        """A process has died: let the one in reserve serve, and see to it that none is missing."""
        if process is self._serving:
            _log.error("engine lost", engine=self._spec.called, pid=process.pid, in_reserve=self._reserve is not None)
            self._serving = None
            self._lost.set()
            if self._reserve is not None:
                self.restarts += 1
                self._serve(self._reserve)
                self._reserve = None
                self._reserve_losses = 0
        elif process is self._reserve:
            _log.error("engine in reserve lost", engine=self._spec.called, pid=process.pid)
            self._reserve = None
            self._reserve_losses += 1
        else:
            return  # the host has stopped
        self._dead.append(process)
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill())

    async def _fill(self) -> None:
        """Start what is missing until nothing is: the process that serves, then the one in reserve."""
        failures = 0
        while self._serving is None or (self._wants_reserve and self._reserve is None):
            await self._bury()
            serves = self._serving is None
            await self._rest(failures if serves else self._reserve_losses)
            if serves != (self._serving is None):
                continue
            self.restarts += serves
            try:
                process = await self._load()
            except RuntimeError as error:
                _log.error("engine not restarted", engine=self._spec.called, in_reserve=not serves, error=str(error))
                failures += serves
                self._reserve_losses += not serves
                continue
            if self._serving is None:
                failures = 0
                self.restarts += not serves
                self._serve(process)
            else:
                self._reserve = process
            _log.info("engine restarted", engine=self._spec.called, in_reserve=process is self._reserve)

    async def _rest(self, failures: int) -> None:
        """Wait before a process is started; no longer when the engine is lost, which needs one at once."""
        self._lost.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(RESTART_DELAYS_S[min(failures, len(RESTART_DELAYS_S) - 1)]):
                await self._lost.wait()

    async def _bury(self) -> None:
        """Wait until processes that died have let go of their device, and say how they ended."""
        while self._dead:
            process = self._dead[0]
            code = await process.exit_code()
            self._dead.remove(process)  # not before: a stop meanwhile ends it
            _log.error("engine's process ended", engine=self._spec.called, pid=process.pid, exit_code=code)


class ChildEngine(EngineLink):
    """An engine of one front's own: its host, and the connection to it.

    Attributes:
        host: keeps the process.
    """

    def __init__(self, spec: EngineSpec, slots: int, slab_bytes: int, reserve: bool = False) -> None:
        self.host = EngineHost(spec, reserve)
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
