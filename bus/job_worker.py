"""The worker's side of durable work: the streams, a puller an operation, and the jobs they bring."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import structlog

from ..config import JobSettings
from .errors import BusError
from .jetstream import STREAM_NOT_FOUND, JetStream, Refused, Unavailable
from .job_puller import Puller
from .job_runs import JobRuns
from .jobs import JobSubjects, consumer, consumer_name, streams
from .loopback import Loopback
from .pipeline import Pipeline
from .subjects import Subjects
from .transport import Transport

RETRY_S = 0.25
RETRY_LONGEST_S = 30.0
STOP_S = 5.0  # for the last results to be stored

_log = structlog.get_logger(__name__)


class JobWorker:
    """Takes the jobs of a worker's operations.

    Args:
        transport: the connection.
        loopback: over it; the worker's service serves on it.
        subjects: the bus's subject tree.
        settings: their group.
        may_answer: whether a subject that a job names may be written to.

    Attributes:
        runs: the jobs it has, and their counters.
    """

    def __init__(
        self,
        transport: Transport,
        loopback: Loopback,
        subjects: Subjects,
        settings: JobSettings,
        may_answer: Callable[[str], bool],
    ) -> None:
        self._transport = transport
        self._names = JobSubjects(subjects)
        self._settings = settings
        self._pipeline = Pipeline(transport)
        self._jetstream = JetStream(transport)
        self.runs = JobRuns(self._pipeline, loopback, self._names, settings, may_answer)
        self._pullers: dict[str, Puller] = {}
        self._loop = asyncio.get_running_loop()
        self._open = AsyncExitStack()
        self._setup: asyncio.Task[None] | None = None
        self._keeper: asyncio.TimerHandle | None = None
        self._running = False

    async def start(self, operations: Sequence[str]) -> None:
        """Make the streams and consumers, and take jobs of these operations, as soon as JetStream lets it."""
        await self._open.enter_async_context(self._pipeline)
        await self._open.enter_async_context(self._jetstream)
        settings, names = self._settings, self._names
        for operation in operations:
            puller = Puller(
                self._transport,
                self._pipeline,
                (names.jobs, consumer_name(operation)),
                settings.in_flight,
                self.runs.take,
                self._set_up_again,
            )
            self._pullers[operation] = puller
            await puller.start()
            self._open.push_async_callback(puller.stop)
        self._transport.on_reconnect.append(self._set_up_again)
        self._running = True
        self._keep()
        if not await self._set_up():
            self._set_up_again()

    async def pause(self) -> None:
        """Take no more jobs; those that come all the same are given back."""
        if not self._running:
            return
        self._running = False
        self.runs.refuse()
        self._transport.on_reconnect.remove(self._set_up_again)
        if self._setup is not None:
            self._setup.cancel()
        # All before anything is given back: the server would send it to the same worker, again and again.
        await asyncio.gather(*(puller.stop() for puller in self._pullers.values()))

    async def stop(self) -> None:
        """Store the results there are, give back every other job; after the service was drained. Idempotent."""
        await self.pause()
        if self._keeper is not None:
            await self.runs.drain(STOP_S)
            self._keeper.cancel()
            self._keeper = None
        await self._open.aclose()

    def _keep(self) -> None:
        self.runs.keep()
        self._keeper = self._loop.call_later(self._settings.ack_wait_s / 4, self._keep)

    def _set_up_again(self) -> None:
        """The server may have come back without streams, or has forgotten what was asked."""
        if self._running and (self._setup is None or self._setup.done()):
            self._setup = self._loop.create_task(self._set_up_until_done())

    async def _set_up_until_done(self) -> None:
        delay_s = RETRY_S
        while True:
            await asyncio.sleep(delay_s)
            if await self._set_up():
                return
            delay_s = min(RETRY_LONGEST_S, 2 * delay_s)

    async def _set_up(self) -> bool:
        """Make what is missing, and pull; false if JetStream did not let it."""
        try:
            for config in streams(self._names, self._settings):
                await self._make_stream(config)
            await asyncio.gather(*map(self._make_consumer, self._pullers))
        except Unavailable:
            _log.info("no durable jobs: this server has no JetStream, or not yet")
            return False
        except BusError as error:
            _log.warning("no durable jobs", error=str(error))
            return False
        for puller in self._pullers.values():
            puller.resume()
        return True

    async def _make_stream(self, config: dict[str, Any]) -> None:
        """Make a stream unless it is there: then it is as its maker, or the operator, wants it."""
        try:
            found = (await self._jetstream.api(f"STREAM.INFO.{config['name']}"))["config"]
        except Refused as refused:
            if refused.err_code != STREAM_NOT_FOUND:
                raise
            await self._jetstream.ensure_stream(config)
            return
        differs = {key: found.get(key) for key, value in config.items() if found.get(key) != value}
        if differs:
            _log.warning("a stream differs from the settings: change either", stream=config["name"], found=differs)

    async def _make_consumer(self, operation: str) -> None:
        config = consumer(self._names, operation, self._settings)
        name = f"{self._names.jobs}.{config['durable_name']}.{config['filter_subject']}"
        await self._jetstream.api(f"CONSUMER.CREATE.{name}", {"stream_name": self._names.jobs, "config": config})
