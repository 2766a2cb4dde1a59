"""What `benchmarks.kpi` asks for: products of small matrices from host memory, and sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aikoryu import Bus
from benchmarks.embed_model import MODEL
from benchmarks.ours_embed import EmbedClient
from benchmarks.workloads import Texts

TOKENS = 24
TOLERANCE = 1e-5  # relative, of a product in float32

Array = NDArray[np.float32]


class Rows(Protocol):
    """Rows of calls, with what their answers are checked against."""

    def many(self, count: int) -> tuple[Any, Any]:
        """`count` rows for one call, and the token for all of them."""

    def wrong_many(self, answers: Any, token: Any) -> int:
        """How many of the rows that are looked at are wrong."""


class Asker(Protocol):
    """A client of one operation."""

    async def call_many(self, rows: Any) -> Any:
        """Answer rows, in their order."""


class Products:
    """Pairs of random float32 matrices, cut at ever new places from one 16 MiB pool.

    One row of every eighth call is checked against NumPy in float64: checking all would cost more than asking.
    """

    EVERY = 8
    _STEP = 4099  # prime, so that no two calls in flight are alike

    def __init__(self, side: int, seed: int) -> None:
        self._side = side
        self._draw = np.random.default_rng(seed)
        self._floats = np.random.default_rng(seed).standard_normal(1 << 22, dtype=np.float32)
        self._at = self._calls = 0

    def many(self, count: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """(count, side, side) operands a and b, C-contiguous, and the same again."""
        rows = self._cut(count), self._cut(count)
        return rows, rows

    def wrong_many(self, answers: Array, token: tuple[Array, Array]) -> int:
        """1 if the row that is looked at differs from NumPy's product; all rows if the answer has another shape."""
        a, b = token
        if answers.shape != a.shape:
            return len(a)
        self._calls += 1
        if self._calls % self.EVERY:
            return 0
        row = int(self._draw.integers(len(a)))
        expected = a[row].astype(np.float64) @ b[row].astype(np.float64)
        return int(not np.linalg.norm(answers[row] - expected) <= TOLERANCE * np.linalg.norm(expected))

    def _cut(self, count: int) -> Array:
        size = count * self._side**2
        self._at = (self._at + self._STEP) % (len(self._floats) - size)
        return self._floats[self._at : self._at + size].reshape(count, self._side, self._side)


class ProductClient:
    """Products, as an agent's program asks for several at once."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def call_many(self, rows: tuple[Array, Array]) -> Array:
        """(n, side, side) products of two (n, side, side) operands."""
        a, b = rows
        answer = await self._bus.call_many("matrix.matmul", {"a": a, "b": b}, idempotent=True)
        (found,) = answer.values()
        return found  # type: ignore[no-any-return]


@dataclass(frozen=True)
class System:
    """Cases that one worker serves.

    Attributes:
        settings: of the worker, by dotted key.
        fronts: of the worker, on a machine with cores for them.
        texts: whether its rows are sentences, and a pool of them has to be made first.
        cases: by name.
    """

    settings: Mapping[str, object]
    fronts: int
    texts: bool
    cases: Mapping[str, Case]


@dataclass(frozen=True)
class Case:
    """One kind of row.

    Attributes:
        title: one line for people.
        rows_per_call: rows that an agent asks for at once; a call is one frame.
        cpu_callers: calls in flight in each load process that saturate the CPU path.
        gpu_callers: likewise the GPU path.
        rows: an endless supply, by seed and pool of texts.
        asker: a client on a bus.
    """

    title: str
    rows_per_call: int
    cpu_callers: int
    gpu_callers: int
    rows: Callable[[int, Path], Rows]
    asker: Callable[[Bus], Asker]


def _products(side: int, rows_per_call: int) -> Case:
    return Case(
        f"products of {side}² f32 from host memory, {rows_per_call} a call",
        rows_per_call,
        8,
        16,
        lambda seed, _: Products(side, seed),
        ProductClient,
    )


_SENTENCES = Case(
    f"sentences of {TOKENS} tokens, 16 a call", 16, 4, 64, lambda seed, pool: Texts(pool, seed), EmbedClient
)

SYSTEMS = {
    "embed": System(
        {"models.embed": MODEL},
        1,  # more fronts gave no more sentences on a GPU host (results of `embed`)
        True,
        {"embed": _SENTENCES},
    ),
    "matrix": System(
        {"models.embed": ""},
        4,
        False,
        {"matrix-64": _products(64, 8), "matrix-256": _products(256, 1)},
    ),
}
CASES = {name: case for system in SYSTEMS.values() for name, case in system.cases.items()}
