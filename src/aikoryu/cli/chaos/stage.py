"""The stage: a server, a worker of two fronts that may be made to fail, and the proxy before them."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ...agents import connect
from ...agents.bus import open_transport
from ...bus.fault_control import inject
from ...bus.faults import ENGINE_KINDS
from ...bus.server import EmbeddedServer
from ...bus.subjects import Subjects
from ...config import Settings
from ...gpu.engines import devices_of
from ..demo_process import Child, child
from ..demo_worker import Ready
from ..failure import Failed
from ..up import on_embedded
from .processes import engine, fronts, kill
from .proxy import Proxy

FRONTS = 2
LIMIT_S = 2.0
COOL_S = 1.0
ASK_S = 0.4
ASKED_S = 30.0


class Stage:
    """What faults act on.

    Attributes:
        settings: of clients.
        proxied: the same, through the proxy.
        proxy: before the server, for the load alone.
    """

    def __init__(self, settings: Settings, server: EmbeddedServer, proxy: Proxy, worker: Child[Ready]) -> None:
        self.settings = settings
        self.proxied = dataclasses.replace(settings, nats=dataclasses.replace(settings.nats, url=proxy.url))
        self.proxy = proxy
        self.subjects = Subjects(settings.bus.prefix, settings.bus.namespace)
        self._server = server
        self._worker = worker
        self._injected: Counter[str] = Counter()

    async def inject(self, *rules: str) -> int:
        """Have the worker's fronts and its device obey these rules, none if there are none.

        Returns:
            How often something went wrong since the last time, at least.

        Raises:
            Failed: not all of them do.
        """
        transport = await open_transport(self.settings)
        try:
            async with asyncio.timeout(ASKED_S):
                # One that was killed comes back first.
                while len(answers := await inject(transport, self.subjects, rules, ASK_S)) < FRONTS:
                    pass
        except TimeoutError:
            raise Failed(f"not all {FRONTS} fronts took the faults") from None
        finally:
            await transport.close()
        for answer in answers:
            if answer.code:
                raise Failed(f"{answer.worker}: {answer.message}")
        injected: Counter[str] = Counter()
        for answer in answers:
            for kind, count in answer.injected.items():  # the fronts share the engine, a connection each has of its own
                injected[kind] = max(injected[kind], count) if kind in ENGINE_KINDS else injected[kind] + count
        before, self._injected = self._injected, injected
        return (injected - before).total()

    async def workers(self, wait_s: float) -> list[dict[str, Any]]:
        """What the fronts tell of themselves."""
        async with connect(settings=self.settings) as bus:
            return await bus.workers(wait_s)

    def kill_front(self) -> None:
        """Crash the front that has lived longest."""
        kill(fronts(self._worker.pid)[0])

    @property
    def engine_pid(self) -> int:
        """The process of the device's engine that serves.

        Raises:
            Failed: there is none.
        """
        return engine(self._worker.pid, devices_of(self.settings)[0])

    def kill_engine(self) -> None:
        """Crash the device's engine."""
        kill(self.engine_pid)

    def kill_server(self) -> None:
        """Crash the server; it is started again on its store."""
        kill(self._server.pid)


@asynccontextmanager
async def stage(settings: Settings) -> AsyncIterator[Stage]:
    """Set everything up, with the settings for a drill, and take it down at exit."""
    with tempfile.TemporaryDirectory(prefix="aikoryu-chaos-") as store:
        server_settings = dataclasses.replace(settings.server, port=0, store_dir=store)
        async with EmbeddedServer(server_settings) as server, Proxy(server.url) as proxy:
            settings = on_embedded(for_drill(settings), server.url)
            async with child("worker", "demo_worker", settings, Ready) as worker:
                if await worker.hear() is None:
                    raise Failed("the worker ended before it was ready: its words are above")
                yield Stage(settings, server, proxy, worker)
                await worker.finished()


def for_drill(settings: Settings) -> Settings:
    """Settings under which faults may be caused, and are over in seconds."""
    return dataclasses.replace(
        settings,
        worker=dataclasses.replace(settings.worker, fronts=FRONTS, spare="cpu"),
        batch=dataclasses.replace(settings.batch, limit_s=LIMIT_S),
        breaker=dataclasses.replace(settings.breaker, cool_s=COOL_S),
        models=dataclasses.replace(settings.models, embed=()),
        faults=dataclasses.replace(settings.faults, enabled=True),
    )
