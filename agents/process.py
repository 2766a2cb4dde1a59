"""A process of agents: one connection, one host, and what tells the world about them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any

import structlog

from ..bus import tracing
from ..bus.discovery import AGENTS, Discovery, instance_name
from ..bus.memory import MemoryBus
from ..bus.permissions import user_of
from ..bus.service import Service
from ..bus.subjects import Subjects
from ..bus.transport import Transport
from ..config import VERSION, Settings
from .agent import Resident
from .announcements import Announced
from .cells import Cells
from .context_ear import ContextEar
from .host import Host
from .memory_states import MemoryStates
from .ownership import Ownership
from .presence import Presence
from .state_store import JetStreamStates, StateStore
from .topics import Ear

_log = structlog.get_logger(__name__)

DESCRIPTION = "Aikoryu agents"
CLOSING_S = 1.0  # that handlers which were cancelled have for their `finally`


class AgentProcess:
    """Serves agents over one connection, until it is stopped.

    Args:
        transport: the connection; it stays open when the process stops.
        settings: all groups.
        bus: what handlers ask through.
        residents: the agents.
        memory: where there is no server, what keeps states.

    Attributes:
        name: one subject token, unique on the bus.
        host: runs what they are asked.
    """

    def __init__(
        self,
        transport: Transport,
        settings: Settings,
        bus: Any,
        residents: Sequence[Resident],
        memory: MemoryBus | None = None,
    ) -> None:
        self.name = instance_name(settings.worker.name)
        self._transport = transport
        self._drain_s = settings.worker.drain_s
        self._subjects = Subjects(settings.bus.prefix, settings.bus.namespace)
        user = user_of(settings.nats.inbox_prefix)
        self._service = Service(
            transport, self._subjects, self.name, reply_prefixes=settings.bus.reply_prefixes, user=user
        )
        self.host = Host(self._service, self.name, bus)
        self._discovery = Discovery(
            transport, self._service, self.name, VERSION, self._details, service_name=AGENTS, description=DESCRIPTION
        )
        self._residents = residents
        self._presence = Presence(
            transport,
            self._subjects,
            self.name,
            self._announced,
            self._loads,
            ttl_s=settings.bus.presence_ttl_s,
            reply_prefixes=settings.bus.reply_prefixes,
        )
        self._states: StateStore = (
            JetStreamStates(transport, self._subjects, self.name) if memory is None else MemoryStates.of(memory)
        )
        partitions = settings.bus.partitions
        cells = Cells()
        self._owners = [
            Ownership(resident, self._service, self._states, cells, bus.agents.watch, self.name, partitions)
            for resident in residents
            if resident.kind.state is not None
        ]
        root = self._subjects.topic(">").removesuffix(">")
        context = contextvars.copy_context()
        context.run(tracing.forget)
        self._ears = [
            Ear(resident, handler, root, bus, context) for resident in residents for handler in resident.kind.topics
        ]
        self._context_ears = [
            ContextEar(resident, handler, bus, context) for resident in residents for handler in resident.kind.contexts
        ]

    async def start(self) -> None:
        """Listen.

        Raises:
            BusError: the connection failed, or may not subscribe what the agents serve.
        """
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self.stop, 0.0)
            await self._service.start()
            if self._owners:
                await self._states.open()
            for resident in self._residents:
                await self.host.serve(resident)
            for ear in self._ears:
                await ear.start(self._transport, self._subjects)
            for context_ear in self._context_ears:
                context_ear.start()
            await self._discovery.start()
            await self._presence.start()
            for owner in self._owners:
                await owner.start()
            await self._transport.flush()
            undo.pop_all()
        _log.info("agents ready", process=self.name, agents=len(self._residents))

    async def stop(self, drain_s: float | None = None) -> bool:
        """Take no more calls and messages, answer every call accepted, handle what has been heard.

        Args:
            drain_s: how long that may take; by default `worker.drain_s`.

        Returns:
            False if some were left when the time had passed.
        """
        end = monotonic() + (self._drain_s if drain_s is None else drain_s)
        await self._presence.stop()
        await asyncio.gather(*(owner.stop(max(0.0, end - monotonic())) for owner in self._owners))
        await self._service.leave()
        await self._discovery.stop()
        ears: list[Ear | ContextEar] = [*self._ears, *self._context_ears]
        heard = await asyncio.gather(*(ear.stop(max(0.0, end - monotonic())) for ear in ears))
        drained = await self._drain(max(0.0, end - monotonic())) and all(heard)
        self.host.stop()
        await self._states.close()
        _log.info("agents stopped", process=self.name, drained=drained)
        return drained

    def _announced(self) -> list[Announced]:
        return [
            Announced(
                each.name, each.capabilities, tuple(each.kind.handlers), each.about, keyed=each.kind.state is not None
            )
            for each in self._residents
        ]

    def _loads(self) -> dict[str, float]:
        return {each.name: load for each in self._residents if (load := each.mailbox.load)}

    async def _drain(self, timeout_s: float) -> bool:
        """Answer what was accepted; when there is no more time, that it was not done."""
        given_up: list[bool] = []
        timer = asyncio.get_running_loop().call_later(timeout_s, lambda: given_up.append(self.host.give_up()))
        drained = await self._service.drain(timeout_s + CLOSING_S)
        timer.cancel()
        return drained and not any(given_up)

    def _details(self, handler: str) -> dict[str, Any]:
        """What the statistics of a handler say of its agent."""
        mailbox = self.host.residents[handler.split(".")[1]].mailbox
        return {"running": mailbox.running, "waiting": len(mailbox), "concurrency": mailbox.concurrency}
