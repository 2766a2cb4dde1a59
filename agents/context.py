"""Contexts: what each agent knows, as a vector, and what of it reaches those who hear it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from ..bus.client import Client
from ..bus.errors import BadParameter, BadValue
from ..bus.pending import Row, RowsFailed
from .context_answers import (
    AllSeen,
    Links,
    Route,
    Seen,
    What,
    as_links,
    as_routes,
    as_seen,
)
from .context_graph import Graph, Spec
from .context_watch import Change, changes
from .context_words import Words, uint64_of, vector_of

MOST_MS = 2**32 - 1  # of an interval, which is a u4
MOST_THRESHOLD = float(np.finfo(np.float32).max)  # which is an f4
MOST_ROUTES = 256

T = TypeVar("T")


class Contexts:
    """The graphs of contexts, by name: `bus.context("team")`.

    Args:
        client: asks who keeps them.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._graphs: dict[str, Graph] = {}
        # Not the client's number, which is nobody else's to know: a writer is kept in the graph's log.
        self._writer = secrets.randbits(63)

    def __call__(
        self,
        graph: str,
        *,
        dimension: int | None = None,
        alpha: float | None = None,
        epsilon: float | None = None,
    ) -> Context:
        """A graph; nothing is sent. What is given here counts where the graph has to be made.

        Args:
            graph: its name, 1 to 64 letters, digits, `_` and `-`.
            dimension: numbers of a vector; by default those of the first that is put.
            alpha: above 0 and at most 1, what of a blended context is the agent's own at the least; 0.3 by default.
            epsilon: above 0, longest residual that is not passed on: a blended context is off by at most epsilon /
                alpha; 0.001 by default.

        Raises:
            ValueError: this is no name.
            BadParameter: a number is not allowed.
        """
        if dimension is not None and dimension < 1:
            raise BadParameter(f"dimension is {dimension}: use at least 1")
        if alpha is not None and not 0 < alpha <= 1:
            raise BadParameter(f"alpha is {alpha}: use more than 0 and at most 1")
        if epsilon is not None and not 0 < epsilon < float("inf"):
            raise BadParameter(f"epsilon is {epsilon}: use more than 0")
        known = self._graphs.get(graph)
        if known is None:
            known = self._graphs[graph] = Graph(self._client, graph, self._writer)
        return Context(known, Spec(dimension or 0, alpha or 0.0, epsilon or 0.0))


class Context(Words):
    """A graph of agents' contexts: who knows what, who hears whom, and what reaches each.

    Every call may be sent again after a lost connection: by version and writer a word counts once, and of two words
    about the same agent, or the same link, the later holds. A graph that nobody keeps is opened, and made by whoever
    first puts something. Each call raises NoWorker where no worker keeps contexts, BadParameter where it reads a graph
    that is not there, and BadColumn, BadValue or RowsFailed where what is given is none.

    Args:
        graph: asks its owner.
        spec: what it is made with.
    """

    async def get(
        self,
        agent: str,
        *,
        what: What = "blended",
        min_epoch: int | None = None,
        timeout_s: float | None = None,
    ) -> Seen:
        """An agent's context; zeros, and version 0, of one that has put nothing and hears nobody.

        Args:
            agent: its name.
            what: its own, or blended with what reaches it.
            min_epoch: at least so much must be in it; by default all that this connection has put and linked, unless
                the graph's log was lost since. 0 takes whatever is there.
            timeout_s: how long to wait, s.
        """
        answer = await self._read("get", {"agent": agent}, {"what": what}, min_epoch, timeout_s)
        return as_seen(answer)

    async def get_many(
        self,
        agents: Sequence[str],
        *,
        what: What = "blended",
        min_epoch: int | None = None,
        timeout_s: float | None = None,
    ) -> AllSeen:
        """The contexts of m agents; see `get`.

        Raises:
            RowsFailed: some were refused; it carries the others' answers.
        """
        if not len(agents):
            return AllSeen.none(self._spec.dimension)
        columns: dict[str, Any] = {"agent": list(agents)}
        answer = await self._read_many("get", columns, {"what": what}, min_epoch, timeout_s)
        return AllSeen(
            answer["vector"], answer["version"], answer["epoch"], answer["residual"], answer["age_ms"] / 1000
        )

    async def route(
        self,
        query: ArrayLike,
        *,
        k: int = 16,
        needs: int = 0,
        load_weight: float = 0.0,
        what: What = "blended",
        min_epoch: int | None = None,
        timeout_s: float | None = None,
    ) -> list[Route]:
        """The agents whose contexts are most like a query, the best first, fewer than k where no more suit.

        Only who has put something is found, zeros at the least: who has only links is not.

        Args:
            query: (d,) float32, float16 or bfloat16.
            k: how many, 1 to 256.
            needs: bits of the capabilities that an agent must have.
            load_weight: what a load of 1 counts, in units of similarity, which is the cosine; of zeros that is 0.
            what: which of the agents' contexts are compared.
            min_epoch, timeout_s: as for `get`.
        """
        row: dict[str, Any] = {"query": vector_of(query, 1)}
        if needs:
            row["needs"] = uint64_of("needs", needs)
        answer = await self._read("route", row, _routing(k, load_weight, what), min_epoch, timeout_s)
        return as_routes(answer["agents"], answer["scores"])

    async def route_many(
        self,
        queries: ArrayLike,
        *,
        k: int = 16,
        needs: ArrayLike | None = None,
        load_weight: float = 0.0,
        what: What = "blended",
        min_epoch: int | None = None,
        timeout_s: float | None = None,
    ) -> list[list[Route]]:
        """The agents for m queries, a list each; see `route`.

        Args:
            queries: (m, d).
            needs: (m,) uint64.
            k, load_weight, what, min_epoch, timeout_s: as for `route`.

        Raises:
            RowsFailed: some were refused; it carries the others' answers.
        """
        columns: dict[str, Any] = {"query": vector_of(queries, 2)}
        if needs is not None:
            columns["needs"] = np.asarray(needs, np.uint64)
        if not len(columns["query"]):
            return []
        answer = await self._read_many("route", columns, _routing(k, load_weight, what), min_epoch, timeout_s)
        return [as_routes(agents, scores) for agents, scores in zip(answer["agents"], answer["scores"], strict=True)]

    def watch(
        self, agent: str, threshold: float, *, min_interval_s: float = 0.0, cursor: int = 0
    ) -> AsyncGenerator[Change, None]:
        """What becomes of an agent's blended context, whenever it has moved; leave it with `aclosing`.

        It tells states: of several changes in quick succession the last. It outlives lost connections, hand-overs and
        the deaths of owners; the next owner, who does not know what was told, may tell the same once more. It waits for
        an owner as long as it takes, once it has heard one.

        Args:
            agent: its name.
            threshold: at least 0; it is told when the context is farther than this from what was told last.
            min_interval_s: the least time between two changes, s.
            cursor: the epoch of the change that was seen last, to go on after it; 0 begins with what is there.

        Raises:
            BadParameter: a number is not allowed; or, while it is iterated, there is no such graph.
            NoWorker: while it is iterated: no worker keeps contexts.
            Closed: the bus was closed.
        """
        if not 0 <= threshold <= MOST_THRESHOLD:
            raise BadParameter(f"threshold is {threshold}: use 0 to {MOST_THRESHOLD:.3g}")
        if not 0 <= 1000 * min_interval_s <= MOST_MS:
            raise BadParameter(f"min_interval_s is {min_interval_s}: use 0 to {MOST_MS // 1000:,}")
        uint64_of("cursor", cursor)
        return changes(self._graph, self._spec, agent, threshold, min_interval_s, cursor)

    async def links(self, agent: str, *, timeout_s: float | None = None) -> Links:
        """Whom an agent hears, and who hears it, with the weights."""
        return as_links(await self._graph.ask("links", {"agent": agent}, spec=self._spec, timeout_s=timeout_s))

    async def stats(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """What the owner says of the graph: agents, edges, epoch, residual, device and more; docs/context.md."""
        answer = await self._graph.ask("stats", {"unused": np.False_}, spec=self._spec, timeout_s=timeout_s)
        found: dict[str, Any] = msgspec.json.decode(answer["stats"])
        return found

    async def _read(
        self,
        operation: str,
        row: dict[str, Any],
        parameters: dict[str, Any],
        given: int | None,
        timeout_s: float | None,
    ) -> Row:
        async def once(least: int) -> Row:
            asked = row | {"min_epoch": np.array(least, np.uint64)} if least else row
            return await self._graph.ask(operation, asked, parameters, spec=self._spec, timeout_s=timeout_s)

        return await self._from(once, given)

    async def _read_many(
        self,
        operation: str,
        columns: dict[str, Any],
        parameters: dict[str, Any],
        given: int | None,
        timeout_s: float | None,
    ) -> dict[str, Any]:
        async def once(least: int) -> dict[str, Any]:
            count = len(next(iter(columns.values())))
            asked = columns | {"min_epoch": np.full(count, least, np.uint64)} if least else columns
            return await self._graph.ask_many(operation, asked, parameters, spec=self._spec, timeout_s=timeout_s)

        return await self._from(once, given)

    async def _from(self, once: Callable[[int], Awaitable[T]], given: int | None) -> T:
        """Ask for what holds at an epoch, as given or that of this connection's words."""
        if given is not None:
            uint64_of("min_epoch", given)
            return await once(given)
        least = self._graph.written
        try:
            return await once(least)
        except (BadValue, RowsFailed):
            # A log that was lost, and began anew, would refuse every read of a connection that lives on.
            if not least or not await self._graph.ends_before(least, self._spec):
                raise
            return await once(self._graph.written)


def _routing(k: int, load_weight: float, what: What) -> dict[str, Any]:
    if not 1 <= k <= MOST_ROUTES:
        raise BadParameter(f"k is {k}: use 1 to {MOST_ROUTES}")
    return {"k": k, "load_weight": load_weight, "what": what}
