"""The bus as an agent sees it: one connection, every system an attribute of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from ..bus.client import Client
from ..bus.connection import NatsConnection
from ..bus.discovery import discover
from ..bus.options import ConnectOptions
from ..bus.subjects import Subjects
from ..bus.transport import Transport
from ..config import Settings, keep_off_stdout, load
from .assignment import Assignment
from .context import Contexts
from .coordination import Coordination
from .dispatch import Dispatcher
from .jobs import Jobs
from .lookout import Lookout
from .matrix import Matrix
from .models import Models
from .packets import Network
from .peer import Agents
from .topics import Publisher


class Bus:
    """What an agent can ask for.

    Attributes:
        matrix: matrix operations, and tensors that stay with a worker.
        models: neural networks.
        agents: agents, to be asked; and topics to publish to.
        packets: packets dissected, classified, and balanced over back ends.
        context: what agents know, and what of it reaches whom: `bus.context("team")`; see `agents.context.Contexts`.
        call: any operation, one row; see `bus.client.Client.call`.
        call_many: any operation, many rows at once; see `Client.call_many`.
        stream: any operation, chunk after chunk; see `Client.stream`.
        submit: any operation, one row, durably; see `agents.jobs.Jobs.submit`.
        job: a job that was submitted before, to be awaited; see `Jobs.job`.
        result: the answer of a job that is done; see `Jobs.result`.
        lock: one holder at a time; see `agents.coordination.Coordination`, also for the next four.
        try_lock: likewise, without waiting.
        elect: one leader at a time.
        shared: values by key, with compare-and-set.
        tasks: work that somebody does.
        dispatch: a task to the agent that suits it best; see `agents.dispatch.Dispatcher`.
        client: asks for all of them; for what sends frames of its own.
    """

    def __init__(
        self,
        client: Client,
        transport: Transport,
        partitions: int,
        jobs: Jobs,
        agents: Agents,
        coordination: Coordination,
        lookout: Lookout,
    ) -> None:
        self.client = client
        self.agents = agents
        self.matrix = Matrix(client, partitions)
        self.models = Models(client)
        self.packets = Network(client, partitions)
        self.context = Contexts(client)
        self.call = client.call
        self.call_many = client.call_many
        self.stream = client.stream
        self.submit = jobs.submit
        self.job = jobs.job
        self.result = jobs.result
        self.lock = coordination.lock
        self.try_lock = coordination.try_lock
        self.elect = coordination.elect
        self.shared = coordination.shared
        self.tasks = coordination.tasks
        self.dispatch = Dispatcher(agents, lookout, self.models, self.matrix, Assignment(client, partitions)).dispatch
        self._transport = transport

    async def workers(self, wait_s: float = 0.3) -> list[dict[str, object]]:
        """Every worker that answers within `wait_s` seconds: identity, endpoints and statistics (ADR-32)."""
        return await discover(self._transport, wait_s)


@asynccontextmanager
async def connect(url: str | None = None, *, settings: Settings | None = None) -> AsyncIterator[Bus]:
    """Connect to the bus.

    Args:
        url: the NATS server, `nats://host:port`; by default the settings' `nats.url`.
        settings: by default those of `aikoryu.toml` and the `AIKORYU_*` variables.

    Raises:
        ConfigError: a setting is not allowed; the message names it.
        ConnectionFailed: the server cannot be reached, or refuses.
    """
    if settings is None:
        settings = load(flags={} if url is None else {"nats.url": url})
    elif url is not None:
        settings = replace(settings, nats=replace(settings.nats, url=url))
    keep_off_stdout(settings.log)
    transport = await open_transport(settings)
    try:
        async with session(transport, settings) as bus:
            yield bus
    finally:
        await transport.close()


@asynccontextmanager
async def session(transport: Transport, settings: Settings) -> AsyncIterator[Bus]:
    """A bus over a connection that is there already, such as one in memory; it stays open."""
    subjects = Subjects(settings.bus.prefix, settings.bus.namespace)
    client = Client(transport, subjects, timeout_s=settings.bus.timeout_s, frame_bytes=settings.bus.frame_bytes)
    jobs = Jobs(transport, subjects, settings.bus.timeout_s)
    publisher = Publisher(transport, subjects, settings.bus.frame_bytes)
    lookout = Lookout(transport, subjects)
    coordination = Coordination(transport, subjects, timeout_s=settings.bus.timeout_s)
    await client.start()
    try:
        agents = Agents(client, publisher, lookout, settings.bus.partitions)
        yield Bus(client, transport, settings.bus.partitions, jobs, agents, coordination, lookout)
    finally:
        await coordination.close()
        await lookout.close()
        await publisher.close()
        await jobs.close()
        await client.close()


async def open_transport(settings: Settings) -> NatsConnection:
    """A supervised connection as the settings' group `nats` says.

    Raises:
        ConnectionFailed: the server cannot be reached, or refuses.
    """
    return await NatsConnection.open(ConnectOptions.of(settings.nats))
