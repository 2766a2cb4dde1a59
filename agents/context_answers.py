"""What is answered about contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"
What: TypeAlias = Literal["own", "blended"]

_neighbours = msgspec.msgpack.Decoder(list[tuple[str, float]])


class Put(NamedTuple):
    """What became of a context that was put.

    Attributes:
        epoch: from which it counts: who reads with this `min_epoch` finds it.
        applied: it holds now; false if another of a later version does.
        version: of what holds now.
    """

    epoch: int
    applied: bool
    version: int


class AllPut(NamedTuple):
    """What became of m contexts; each field (m,), as of `Put`.

    Attributes:
        epochs: uint64.
        applied: bool.
        versions: uint64.
    """

    epochs: NDArray[np.uint64]
    applied: NDArray[np.bool_]
    versions: NDArray[np.uint64]

    @classmethod
    def none(cls) -> AllPut:
        """Of no rows."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.bool_), np.empty(0, np.uint64))


class Linked(NamedTuple):
    """What became of a link.

    Attributes:
        epoch, applied: as of `Put`.
    """

    epoch: int
    applied: bool


class AllLinked(NamedTuple):
    """What became of m links; each field (m,), as of `Put`.

    Attributes:
        epochs: uint64.
        applied: bool.
    """

    epochs: NDArray[np.uint64]
    applied: NDArray[np.bool_]

    @classmethod
    def none(cls) -> AllLinked:
        """Of no rows."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.bool_))


class Seen(NamedTuple):
    """An agent's context.

    Attributes:
        vector: (d,) float32.
        version: of what the agent has put last, 0 if nothing.
        epoch: of the graph, when it was read.
        residual: longest residual then: a blended context is off by at most this over alpha.
        age_s: since the owner has taken the latest words, s.
    """

    vector: NDArray[np.float32]
    version: int
    epoch: int
    residual: float
    age_s: float


class AllSeen(NamedTuple):
    """The contexts of m agents, as of `Seen`.

    Attributes:
        vectors: (m, d) float32.
        versions, epochs: (m,) uint64.
        residuals, ages_s: (m,) float32.
    """

    vectors: NDArray[np.float32]
    versions: NDArray[np.uint64]
    epochs: NDArray[np.uint64]
    residuals: NDArray[np.float32]
    ages_s: NDArray[np.float32]

    @classmethod
    def none(cls, dimension: int) -> AllSeen:
        """Of no rows."""
        numbers, lengths = np.empty(0, np.uint64), np.empty(0, np.float32)
        return cls(np.empty((0, dimension), np.float32), numbers, numbers, lengths, lengths)


class Route(NamedTuple):
    """An agent that suits a query.

    Attributes:
        agent: its name.
        score: similarity less weighted load.
    """

    agent: str
    score: float


class Links(NamedTuple):
    """An agent's links: names and weights, at most 4,096 either way.

    Attributes:
        heard: whom it hears.
        hearers: who hears it.
    """

    heard: list[tuple[str, float]]
    hearers: list[tuple[str, float]]


def as_seen(answer: Mapping[str, Any]) -> Seen:
    """The answer of `context.get`."""
    return Seen(
        answer["vector"],
        int(answer["version"]),
        int(answer["epoch"]),
        float(answer["residual"]),
        float(answer["age_ms"]) / 1000,
    )


def as_routes(agents: str, scores: Sequence[float]) -> list[Route]:
    """A row of the answer of `context.route`: names, a line each, and scores, of which there may be more."""
    names = agents.split("\n") if agents else []
    return [Route(name, float(score)) for name, score in zip(names, scores, strict=False)]


def as_links(answer: Mapping[str, Any]) -> Links:
    """The answer of `context.links`."""
    return Links(_neighbours.decode(answer["heard"]), _neighbours.decode(answer["hearers"]))
