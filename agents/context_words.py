"""What is said of contexts: what agents know, and who hears whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..bus.errors import BadColumn, BadParameter
from .context_answers import AllLinked, AllPut, Array, Linked, Put
from .context_graph import Graph, Spec


class Words:
    """What one connection says to a graph: each word counts once, and of two about the same the later holds.

    Args:
        graph: asks its owner.
        spec: what it is made with.
    """

    def __init__(self, graph: Graph, spec: Spec) -> None:
        self._graph = graph
        self._spec = spec

    @property
    def name(self) -> str:
        """The graph's."""
        return self._graph.name

    async def put(
        self,
        agent: str,
        vector: ArrayLike,
        *,
        ttl_s: float | None = None,
        capabilities: int = 0,
        load: float = 0.0,
        version: int | None = None,
        timeout_s: float | None = None,
    ) -> Put:
        """Say what an agent knows; what was said before of the same agent no longer holds.

        Args:
            agent: its name, at most 255 bytes without control characters.
            vector: (d,) float32, float16 or bfloat16; kept as bfloat16.
            ttl_s: after so long without another put it is taken away, with its links, s; by default it stays.
            capabilities: a bit for each, which `route` asks for.
            load: how busy it is, which `route` may weigh.
            version: at least 1; of two words the greater counts. By default the time, so that the later does.
            timeout_s: how long to wait, s.
        """
        number = self._word(version)
        row: dict[str, Any] = {
            "agent": agent,
            "vector": vector_of(vector, 1),
            "version": number,
            "writer": self._graph.writer,
        }
        if ttl_s is not None:
            row["ttl_ms"] = _milliseconds(ttl_s)
        if capabilities:
            row["capabilities"] = uint64_of("capabilities", capabilities)
        if load:
            row["load"] = np.float32(load)
        answer = await self._graph.ask("put", row, spec=self._making(row["vector"]), timeout_s=timeout_s)
        self._graph.remember(int(answer["epoch"]))
        return Put(int(answer["epoch"]), bool(answer["applied"]), int(answer["version"]))

    async def put_many(
        self,
        agents: Sequence[str],
        vectors: ArrayLike,
        *,
        ttl_s: float | None = None,
        capabilities: ArrayLike | None = None,
        load: ArrayLike | None = None,
        timeout_s: float | None = None,
    ) -> AllPut:
        """Say what m agents know, as `put`; of one that comes more than once the last counts.

        Args:
            agents: m names.
            vectors: (m, d).
            ttl_s, timeout_s: as for `put`.
            capabilities: (m,) uint64.
            load: (m,) float32.

        Raises:
            RowsFailed: some were refused; it carries the others' answers.
        """
        count = len(agents)
        if not count:
            return AllPut.none()
        columns: dict[str, Any] = {"agent": list(agents), "vector": vector_of(vectors, 2)}
        columns |= {"version": self._words(count), "writer": np.full(count, self._graph.writer)}
        if ttl_s is not None:
            columns["ttl_ms"] = np.full(count, _milliseconds(ttl_s))
        if capabilities is not None:
            columns["capabilities"] = np.asarray(capabilities, np.uint64)
        if load is not None:
            columns["load"] = np.asarray(load, np.float32)
        answer = await self._graph.ask_many("put", columns, spec=self._making(columns["vector"]), timeout_s=timeout_s)
        self._graph.remember(int(answer["epoch"].max()))
        return AllPut(answer["epoch"], answer["applied"], answer["version"])

    async def link(
        self,
        source: str,
        target: str,
        weight: float = 1.0,
        *,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Linked:
        """Let one agent hear another, neither of which need have put anything yet.

        Args:
            source: whom it hears.
            target: who hears.
            weight: above 0, beside the 1 that each agent gives itself; 0 ends the link.
            ttl_s: after so long the link ends, s; by default it stays.
            timeout_s: how long to wait, s.
        """
        number = self._word()
        row: dict[str, Any] = {"source": source, "target": target, "weight": np.array(weight, np.float32)}
        row |= {"version": number, "writer": self._graph.writer}
        if ttl_s is not None:
            row["ttl_ms"] = _milliseconds(ttl_s)
        answer = await self._graph.ask("link", row, spec=self._spec, timeout_s=timeout_s)
        self._graph.remember(int(answer["epoch"]))
        return Linked(int(answer["epoch"]), bool(answer["applied"]))

    async def unlink(self, source: str, target: str, *, timeout_s: float | None = None) -> Linked:
        """Let one agent no longer hear another."""
        return await self.link(source, target, 0.0, timeout_s=timeout_s)

    async def link_many(
        self,
        sources: Sequence[str],
        targets: Sequence[str],
        weights: ArrayLike = 1.0,
        *,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
    ) -> AllLinked:
        """Make m links, as `link`; of one that comes more than once the last counts.

        Args:
            sources, targets: m names each.
            weights: (m,) float32, or one for all.
            ttl_s, timeout_s: as for `link`.

        Raises:
            RowsFailed: some were refused; it carries the others' answers.
        """
        count = len(sources)
        if not count:
            return AllLinked.none()
        columns: dict[str, Any] = {"source": list(sources), "target": list(targets)}
        columns["weight"] = _weights_of(weights, count)
        columns |= {"version": self._words(count), "writer": np.full(count, self._graph.writer)}
        if ttl_s is not None:
            columns["ttl_ms"] = np.full(count, _milliseconds(ttl_s))
        answer = await self._graph.ask_many("link", columns, spec=self._spec, timeout_s=timeout_s)
        self._graph.remember(int(answer["epoch"].max()))
        return AllLinked(answer["epoch"], answer["applied"])

    def _word(self, version: int | None = None) -> Array:
        """The version of one word, (), as given if it is."""
        if version is not None:
            uint64_of("version", version, 1)
        return np.array(self._graph.versions(1, version), np.uint64)

    def _words(self, count: int) -> Array:
        """The versions of so many words, (count,)."""
        first = self._graph.versions(count)
        return np.arange(first, first + count, dtype=np.uint64)

    def _making(self, vectors: Array) -> Spec:
        """What the graph is made with where these are its first vectors."""
        return self._spec if self._spec.dimension else self._spec._replace(dimension=vectors.shape[-1])


def vector_of(given: ArrayLike, axes: int) -> Array:
    """As it is if it is of a dtype that is taken, else as float32.

    Raises:
        BadColumn: it makes no array of so many axes, or its numbers are complex.
    """
    try:
        array = np.asarray(given)
        if array.dtype.kind == "c":
            raise TypeError("its numbers are complex, give real ones")
        if array.dtype not in (np.float32, np.float16) and array.dtype.name != "bfloat16":
            with np.errstate(over="ignore"):  # infinite then, which the owner refuses in words
                array = array.astype(np.float32, copy=False)
    except (TypeError, ValueError) as error:
        raise BadColumn(f"a context makes no array of numbers: {error}") from None
    if array.ndim != axes or not array.shape[-1]:
        raise BadColumn(f"contexts have the shape {array.shape}: give ({'d,' if axes == 1 else 'm, d'})")
    return array


def uint64_of(name: str, number: int, least: int = 0) -> np.uint64:
    """A parameter's number.

    Raises:
        BadParameter: it is too small or too large.
    """
    if not least <= number < 2**64:
        raise BadParameter(f"{name} is {number}: use {least} to 2**64 - 1")
    return np.uint64(number)


def _weights_of(given: ArrayLike, count: int) -> Array:
    try:
        return np.ascontiguousarray(np.broadcast_to(np.asarray(given, np.float32), count))
    except (TypeError, ValueError) as error:
        raise BadColumn(f"weights are not one number, nor {count}: {error}") from None


def _milliseconds(ttl_s: float) -> np.int64:
    if not 0 < ttl_s < 2**40:
        raise BadParameter(f"ttl_s is {ttl_s}: use more than 0")
    return np.int64(max(1, round(1000 * ttl_s)))
