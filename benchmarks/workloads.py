"""What callers send and how answers are checked: an endless supply of rows, none sent twice."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.shapes import ROW_FLOATS


class Workload(Protocol):
    """Rows to ask, each with what is needed to check its answer."""

    def one(self) -> tuple[Any, Any]:
        """A row and the token its answer is checked against."""

    def many(self, count: int) -> tuple[Any, Any]:
        """`count` rows for one `call_many` and the token for all of them."""

    def wrong(self, answer: Any, token: Any) -> int:
        """How many rows of the answer to `one` are wrong (0 or 1)."""

    def wrong_many(self, answers: Any, token: Any) -> int:
        """How many rows of the answer to `many` are wrong."""


class FloatRows:
    """Random float32 rows, cut at ever new offsets from one 16 MiB pool, and expected back unchanged.

    The step is odd, so all 2²² offsets are used before one repeats and no two rows in flight are alike. Cutting costs
    the load process 0.2 µs a row where drawing 384 fresh floats would cost more than the request it measures.
    """

    STEP = ROW_FLOATS + 5

    def __init__(self, seed: int) -> None:
        floats = np.random.default_rng(seed).standard_normal(1 << 22, dtype=np.float32)
        self._offsets = len(floats)
        self._floats = np.concatenate([floats, floats[: 1 << 20]])
        self._raw = self._floats.tobytes()
        self._at = 0

    def one(self) -> tuple[NDArray[np.float32], int]:
        """A (384,) float32 row, C-contiguous, and its offset in the pool."""
        at = self._at
        self._at = (at + self.STEP) % self._offsets
        return self._floats[at : at + ROW_FLOATS], at

    def many(self, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(count, 384) float32 rows, C-contiguous, and the same rows again to compare with."""
        at = self._at
        self._at = (at + self.STEP * count) % self._offsets
        rows = self._floats[at : at + ROW_FLOATS * count].reshape(count, ROW_FLOATS)
        return rows, rows

    def wrong(self, answer: NDArray[np.float32], token: int) -> int:
        """1 unless the answer has exactly the bytes that were sent."""
        return int(answer.tobytes() != self._raw[4 * token : 4 * (token + ROW_FLOATS)])

    def wrong_many(self, answers: NDArray[np.float32], token: NDArray[np.float32]) -> int:
        """Rows that differ from those sent; all of them when the answer has another shape."""
        if answers.shape != token.shape:
            return len(token)
        return int((answers != token).any(axis=1).sum())


class Texts:
    """A pool of sentences in seeded order, each with the embedding an in-process encoder gave it."""

    COSINE = 0.999

    def __init__(self, path: Path, seed: int) -> None:
        self._texts: list[str] = json.loads(path.read_text())
        self._expected: NDArray[np.float32] = np.load(path.with_suffix(".npy"))
        self._order = np.random.default_rng(seed).permutation(len(self._texts)).tolist()
        self._at = 0

    def one(self) -> tuple[str, int]:
        """A sentence and its number in the pool."""
        self._at = (self._at + 1) % len(self._order)
        number = self._order[self._at]
        return self._texts[number], number

    def many(self, count: int) -> tuple[list[str], list[int]]:
        """`count` sentences and their numbers."""
        texts, numbers = zip(*(self.one() for _ in range(count)), strict=True)
        return list(texts), list(numbers)

    def wrong(self, answer: NDArray[np.float32], token: int) -> int:
        """1 unless the answer is a (384,) unit vector with cosine ≥ 0.999 to the expected one."""
        expected = self._expected[token]
        return int(answer.shape != expected.shape or not float(answer @ expected) >= self.COSINE)

    def wrong_many(self, answers: NDArray[np.float32], token: list[int]) -> int:
        """Rows whose cosine to the expected embedding is below 0.999; all of them when the answer has another shape."""
        expected = self._expected[token]
        if answers.shape != expected.shape:
            return len(token)
        return int((~(np.einsum("ij,ij->i", answers, expected) >= self.COSINE)).sum())


class Keys:
    """Keys of which each is changed by one, none twice at the same time, and whose totals come back.

    The names are those of one process: servers stand while load processes come and go, and keep the totals.
    """

    def __init__(self) -> None:
        self._free: deque[str] = deque()
        self._totals: dict[str, int] = {}

    def one(self) -> tuple[str, str]:
        """A key of which no change is in flight; a new one if there is none."""
        key = self._free.popleft() if self._free else f"{os.getpid()}-{len(self._totals)}"
        self._totals[key] = self._totals.get(key, 0) + 1
        return key, key

    def many(self, count: int) -> tuple[list[str], list[str]]:
        """`count` keys, and the same again."""
        keys = [self.one()[0] for _ in range(count)]
        return keys, keys

    def wrong(self, answer: int, token: str) -> int:
        """1 unless the answer is the number of the key's changes; the next change of it may come."""
        self._free.append(token)
        return int(answer != self._totals[token])

    def wrong_many(self, answers: Sequence[int], token: Sequence[str]) -> int:
        """Keys with another total; all of them when the answer has another length."""
        if len(answers) != len(token):
            return len(token)
        return sum(map(self.wrong, answers, token))


def save_texts(path: Path, texts: list[str], expected: NDArray[np.float32]) -> None:
    """Write a text pool: `path` (JSON list of sentences) and beside it the (n, d) float32 embeddings as `.npy`."""
    path.write_text(json.dumps(texts))
    np.save(path.with_suffix(".npy"), expected)


def load_workload(name: str, seed: int) -> Workload:
    """The workload that a shape names."""
    if name == "keys":
        return Keys()
    return FloatRows(seed) if name == "floats" else Texts(Path(name), seed)
