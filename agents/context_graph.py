"""A context graph as one connection sees it: whoever keeps it is asked, and where nobody does it is opened."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import structlog

from ..bus.client import Client
from ..bus.deadline import inherited_s
from ..bus.errors import BadParameter, BadValue, BusError, Busy, Expired, Moved, NoWorker
from ..bus.pending import Answer, Row, RowsFailed

OPEN_S = 60.0  # longest that a graph takes to be read from its log
SOONEST_S = 0.02  # between two tries
LATEST_S = 0.25
LOOK_S = 0.25  # between two looks for rows that nobody takes any more
SILENT_S = 1.0  # that many rows may be without their answers, until it is asked whether somebody keeps the graph

_NAME = re.compile(r"[A-Za-z0-9_\-]{1,64}")

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Spec(NamedTuple):
    """What a graph is opened with; 0 leaves it to whoever made the graph, and else to the worker.

    Attributes:
        dimension: numbers of a vector.
        alpha: what of an agent's blended context is its own at the least.
        epsilon: longest residual that is not passed on.
    """

    dimension: int = 0
    alpha: float = 0.0
    epsilon: float = 0.0


class Graph:
    """Asks the owner of one graph.

    A graph that nobody keeps is opened by the first who asks for it, whoever else asks meanwhile: workers are asked
    `context.open`, and the same rows go out again. They can: by their version and writer they count once.

    Args:
        client: asks.
        name: 1 to 64 letters, digits, `_` and `-`.
        writer: by which words of this connection are told from those of others with the same version.

    Attributes:
        name, writer: as above.
        written: the latest epoch by which words of this connection were answered; 0 before the first.

    Raises:
        ValueError: this is no name.
    """

    def __init__(self, client: Client, name: str, writer: int) -> None:
        check_name(name)
        self.name = name
        self.writer = np.array(writer, np.uint64)  # an array, which a row takes as it is
        self.written = 0
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._last_version = 0
        self._opening: dict[Spec, asyncio.Task[None]] = {}
        self._rows: set[Answer] = set()
        self._many: dict[object, float] = {}  # since when they are silent, loop time, s
        self._looking = False

    @property
    def timeout_s(self) -> float:
        """How long a call waits unless it says otherwise, s."""
        return self._client.timeout_s

    def versions(self, count: int, given: int | None = None) -> int:
        """The first of so many versions: as given, or later than all before, by the clock unless that stood still."""
        first = max(self._last_version + 1, time.time_ns()) if given is None else given
        self._last_version = max(self._last_version, first + count - 1)
        return first

    def remember(self, epoch: int) -> None:
        """A word of this connection was answered by this epoch."""
        self.written = max(self.written, epoch)

    async def ends_before(self, epoch: int, spec: Spec) -> bool:
        """Whether its log ends before an epoch that was answered: it was lost, and what this connection said with it.

        If so, reads ask no longer for what is beyond its end.
        """
        answer = await self.ask("stats", {"unused": np.False_}, spec=spec)
        last: int = msgspec.json.decode(answer["stats"])["log_last"]
        if last >= epoch:
            return False
        if self.written > last:
            _log.warning("context graph has lost what was said", graph=self.name, answered=self.written, epoch=last)
            self.written = last
        return True

    async def ask(
        self,
        operation: str,
        row: Mapping[str, Any],
        parameters: Mapping[str, Any] | None = None,
        *,
        spec: Spec,
        timeout_s: float | None = None,
    ) -> Row:
        """Ask for one row.

        Args:
            operation: `put`.
            row, parameters: as of `Client.call`.
            spec: what the graph is opened with if nobody keeps it.
            timeout_s: how long to wait, opening included, s.

        Raises:
            NoWorker: no worker keeps contexts, or none that was asked to open the graph answers for it.
            BadParameter: there is no such graph, and `spec` does not say what it should be.
            Expired: the answer did not come in time.
        """

        async def once(timeout_s: float | None) -> Row:
            answer = self._client.call(self._asked(operation), row, parameters, timeout_s=timeout_s, idempotent=True)
            self._rows.add(answer)
            self._keep_looking()
            try:
                return await answer
            finally:
                self._rows.discard(answer)

        return await self._until_kept(once, spec, timeout_s)

    async def ask_many(
        self,
        operation: str,
        columns: Mapping[str, Any],
        parameters: Mapping[str, Any] | None = None,
        *,
        spec: Spec,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Ask for many rows at once, one at the least; as `ask`, and raises RowsFailed where rows got other errors."""

        async def once(timeout_s: float | None) -> dict[str, Any]:
            silent = object()
            self._many[silent] = self._loop.time()
            self._keep_looking()
            try:
                return await self._client.call_many(
                    self._asked(operation), columns, parameters, timeout_s=timeout_s, idempotent=True
                )
            except RowsFailed as failed:
                # All of them again: those that were taken are known by their versions.
                unkept = [error for error in failed.errors.values() if isinstance(error, (NoWorker, Moved))]
                raise (unkept[0] if unkept else failed) from None
            finally:
                del self._many[silent]

        return await self._until_kept(once, spec, timeout_s)

    async def _until_kept(self, once: Callable[[float | None], Awaitable[T]], spec: Spec, timeout_s: float | None) -> T:
        begun = self._loop.time()
        try:
            return await once(timeout_s)
        except (NoWorker, Moved) as error:
            why: BusError = error
        end = begun + inherited_s(self._client.timeout_s if timeout_s is None else timeout_s)
        tries = 0
        while True:
            if isinstance(why, NoWorker):
                await self._opened(spec, end - self._loop.time())
            if tries or isinstance(why, Moved):
                await asyncio.sleep(backoff_s(tries))
            tries += 1
            left_s = end - self._loop.time()
            if left_s <= 0:
                raise NoWorker(
                    f"context graph {self.name!r} has no owner that answers: see that workers run, and what their logs "
                    "say of it"
                ) from why
            try:
                # To a tenth: rows that go out again in one moment share a frame.
                return await once(max(0.1, round(left_s, 1)))
            except (NoWorker, Moved) as error:
                why = error

    async def _opened(self, spec: Spec, within_s: float) -> None:
        """Return when the graph has been opened; several who want that at once ask once."""
        task = self._open(spec)
        done, _ = await asyncio.wait({task}, timeout=max(0.0, within_s))
        if not done:
            raise Expired(f"context graph {self.name!r} is being opened, which takes longer: ask again")
        task.result()

    def _open(self, spec: Spec) -> asyncio.Task[None]:
        task = self._opening.get(spec)
        if task is None:
            # A context of its own: it outlives whoever asked first, and that one's deadline.
            task = self._loop.create_task(self._ask_to_open(spec), context=Context())
            self._opening[spec] = task
            task.add_done_callback(lambda done: self._end_opening(spec, done))
        return task

    async def _ask_to_open(self, spec: Spec) -> None:
        row = {
            "graph": self.name,
            "dimension": np.uint32(spec.dimension),
            "alpha": np.float32(spec.alpha),
            "epsilon": np.float32(spec.epsilon),
        }
        try:
            await self._client.call("context.open", row, timeout_s=OPEN_S, idempotent=True)
        except Busy as busy:
            # `moved`: another has it by now, or the one who had it is not quite gone. The rows find out.
            _log.debug("context graph not opened", graph=self.name, reason=str(busy))
        except NoWorker:
            raise NoWorker(
                f"nobody keeps context graph {self.name!r}, and no worker could: start one, `aikoryu worker`, or see "
                "that those that run have context.enabled and a server with JetStream"
            ) from None
        except (BadParameter, BadValue) as error:
            if spec.dimension:
                raise
            raise BadParameter(
                f"context graph {self.name!r} is not there: put something, or open it with a dimension, "
                f"bus.context({self.name!r}, dimension=…)"
            ) from error

    def _end_opening(self, spec: Spec, task: asyncio.Task[None]) -> None:
        del self._opening[spec]
        if not task.cancelled():
            task.exception()  # looked at: nobody may wait for it any more

    def _keep_looking(self) -> None:
        if not self._looking:
            self._looking = True
            self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        """Have the graph opened again where its owner is gone: the client itself only waits for another."""
        self._looking = False
        if not self._rows and not self._many:
            return
        now = self._loop.time()
        silent = [key for key, since in self._many.items() if now - since >= SILENT_S]
        self._many.update(dict.fromkeys(silent, now))
        if silent or any(answer.frame.unserved for answer in self._rows):
            self._open(Spec())  # it was there, and so is its log
        self._keep_looking()

    def _asked(self, operation: str) -> str:
        return f"context.{operation}.{self.name}"


def check_name(name: str) -> None:
    """Raise ValueError unless a graph can be called so."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"context graph {name!r}: use 1 to 64 letters, digits, '_' and '-'")


def backoff_s(tries: int, latest_s: float = LATEST_S) -> float:
    """How long to wait before another try, after so many, s."""
    return min(SOONEST_S * 2.0 ** min(tries, 8), latest_s) * (0.5 + random.random())
