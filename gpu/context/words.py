"""What is said to a graph in one window, as it stands in the log. NumPy only.

An entry is a MessagePack array; numbers of a column are its bytes, little-endian, and none where all are 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ...bus.columns import Array, narrow_bf16, widen_bf16
from ..shortlist import LONGEST

FORMAT = 1
MOST_NAME_BYTES = 255
LARGEST_WEIGHT = 2.0**32
"""Of an edge: so many times `LONGEST`, from every agent there may be, is a number yet."""
LAST_WRITER = (1 << 64) - 1
"""Whoever ends what has expired: after all writers of the same version, and before the next version."""
LAST_MS = (1 << 63) - 1
TOO_LONG = f"a vector longer than {LONGEST:g}: scale it"

# Of epsilon, the length of vectors up to which a residual gets below it in float32. Of 2,000 agents with 8 edges each
# 2^23 did, and 2^26 did not, after which every window swept all rows.
_SETTLING = 2.0**22
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_FOUR_BYTES_EACH = MOST_NAME_BYTES // 4


@dataclass(frozen=True)
class Spec:
    """What is settled once for a graph.

    Attributes:
        dimension: d, of every vector.
        alpha: above 0 and at most 1, what of an agent's blended context is its own at the least.
        epsilon: above 0, the longest residual that is left; a blended context is within epsilon / alpha.
    """

    dimension: int
    alpha: float = 0.3
    epsilon: float = 1e-3

    @property
    def longest(self) -> float:
        """The length of the longest vector for which float32 allows a residual of epsilon."""
        return min(LONGEST, self.epsilon * _SETTLING)


@dataclass(frozen=True)
class Puts:
    """Words on what agents know.

    Attributes:
        agents: m names; one may come more than once.
        vectors: (m, d) uint16, bits of bf16.
        versions, writers: (m,) uint64; versions begin at 1.
        until_ms: (m,) int64, when it ends, ms since 1970; 0 for never.
        capabilities: (m,) uint64, a bit for each.
        load: (m,) float32.
    """

    agents: list[str]
    vectors: Array
    versions: Array
    writers: Array
    until_ms: Array
    capabilities: Array
    load: Array

    @classmethod
    def none(cls, dimension: int) -> Puts:
        """No words."""
        return _puts([], np.empty((0, dimension), np.uint16), [b""] * 5)

    def __len__(self) -> int:
        return len(self.agents)


@dataclass(frozen=True)
class Links:
    """Words on who hears whom.

    Attributes:
        sources, targets: m names; a target hears its source.
        weights: (m,) float32; 0 ends an edge.
        versions, writers: (m,) uint64, of the edge; versions begin at 1.
        until_ms: (m,) int64, as of a put.
    """

    sources: list[str]
    targets: list[str]
    weights: Array
    versions: Array
    writers: Array
    until_ms: Array

    @classmethod
    def none(cls) -> Links:
        """No words."""
        return _links([], [], [b""] * 4)

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True)
class Words:
    """One window.

    Attributes:
        now_ms: the owner's clock, ms since 1970, never less than in the window before. What ends by then, ends first.
        puts, links: what is said.
        spec: in the first window of a log.
        forget: whether what is kept of the removed and the unlinked is dropped, after all else.
    """

    now_ms: int
    puts: Puts
    links: Links
    spec: Spec | None = None
    forget: bool = False


class _Entry(msgspec.Struct, array_like=True):
    format: int
    now_ms: int
    forget: bool
    spec: tuple[int, float, float] | None
    dimension: int
    agents: list[str]
    vectors: memoryview
    puts: list[memoryview]
    sources: list[str]
    targets: list[str]
    links: list[memoryview]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Entry)


def encode(words: Words) -> bytes:
    """An entry of the log."""
    puts, links, spec = words.puts, words.links, words.spec
    return _encoder.encode(
        _Entry(
            FORMAT,
            words.now_ms,
            words.forget,
            None if spec is None else (spec.dimension, spec.alpha, spec.epsilon),
            puts.vectors.shape[1],
            puts.agents,
            _memory(puts.vectors),
            [_memory(x) for x in (puts.versions, puts.writers, puts.until_ms, puts.capabilities, puts.load)],
            links.sources,
            links.targets,
            [_memory(x) for x in (links.weights, links.versions, links.writers, links.until_ms)],
        )
    )


def decode(entry: bytes) -> Words:
    """What `encode` made; its arrays share the entry's memory, and are not written to.

    Raises:
        ValueError: it is no such entry.
    """
    try:
        found = _decoder.decode(entry)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"an entry of a graph's log is no window: {error}") from None
    if found.format != FORMAT:
        raise ValueError(f"an entry of a graph's log has format {found.format}, known is {FORMAT}: use a newer aikoryu")
    rows = len(found.agents)
    vectors = _numbers(found.vectors, "<u2", rows * found.dimension).reshape(rows, found.dimension)
    return Words(
        found.now_ms,
        _puts(found.agents, vectors, found.puts),
        _links(found.sources, found.targets, found.links),
        None if found.spec is None else Spec(*found.spec),
        found.forget,
    )


def rounded(vectors: Array) -> Array:
    """Bits of bf16, uint16, of vectors in f4, f2 or bf16 already (its bits as uint16), rounded to nearest even."""
    if vectors.dtype == np.uint16:
        return np.ascontiguousarray(vectors)
    return narrow_bf16(np.ascontiguousarray(vectors, np.float32))


def until_ms(ttl_ms: Array, now_ms: int) -> Array:
    """(m,) int64, when words end that are to hold so long, (m,) int64; 0 for always, and what is below 0 stays."""
    ttl = np.asarray(ttl_ms, np.int64)
    return np.where(ttl > 0, np.minimum(ttl, LAST_MS - now_ms) + now_ms, ttl)


def refused_puts(puts: Puts, spec: Spec) -> dict[int, str]:
    """Rows that a graph cannot take, and why; they must not come into the log.

    Args:
        puts: any words, of the graph's dimension.
        spec: of the graph; how long vectors may be depends on its epsilon.
    """
    found = refused_names(puts.agents)
    longer = f"a vector longer than {spec.longest:g}: scale it, or open a graph of a greater epsilon"
    _refuse(found, refused_vectors(puts.vectors, spec.longest, longer))
    _refuse(found, _unstamped(puts))
    _note(found, ~np.isfinite(puts.load), "a load that is not finite: use a number")
    return found


def refused_links(links: Links) -> dict[int, str]:
    """Rows that a graph cannot take, and why; they must not come into the log."""
    found = refused_names(links.sources)
    _refuse(found, refused_names(links.targets))
    same = np.fromiter(map(str.__eq__, links.sources, links.targets), bool, len(links))
    _note(found, same, "an agent hears itself always: link two")
    fits = (links.weights >= 0) & (links.weights <= LARGEST_WEIGHT)
    _note(found, ~fits, f"a weight is at least 0, which ends a link, and at most {LARGEST_WEIGHT:g}")
    _refuse(found, _unstamped(links))
    return found


def refused_vectors(vectors: Array, longest: float = LONGEST, reason: str = TOO_LONG) -> dict[int, str]:
    """Rows of (m, d) bits of bf16, or f2 or f4, that are longer than this or not finite, and why."""
    values = widen_bf16(vectors) if vectors.dtype == np.uint16 else vectors.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        square = np.einsum("ij,ij->i", values, values, dtype=np.float32)
        long = ~(square <= np.float32(longest) ** 2)
    return {
        row: reason if np.isfinite(values[row]).all() else "a vector with a number that is not finite: use numbers"
        for row in long.nonzero()[0].tolist()
    }


def refused_names(names: Sequence[str]) -> dict[int, str]:
    """Rows whose names agents cannot have, and why."""
    sizes = list(map(len, names))
    if not sizes or (min(sizes) > 0 and max(sizes) <= _FOUR_BYTES_EACH and not _UNFIT.search("".join(names))):
        return {}
    reason = f"an agent's name is 1 to {MOST_NAME_BYTES} bytes of UTF-8 without control characters"
    return {row: reason for row, name in enumerate(names) if not _is_name(name)}


def _is_name(name: str) -> bool:
    return bool(name) and not _UNFIT.search(name) and len(name.encode()) <= MOST_NAME_BYTES


def _unstamped(said: Puts | Links) -> dict[int, str]:
    found: dict[int, str] = {}
    _note(found, said.versions == 0, "version 0: versions begin at 1")
    _note(found, said.writers == np.uint64(LAST_WRITER), f"writer {LAST_WRITER} is who ends what has expired: use less")
    _note(found, said.until_ms < 0, "a time to live below 0: use milliseconds, or 0 for always")
    return found


def _note(found: dict[int, str], rows: Array, reason: str) -> None:
    for row in rows.nonzero()[0].tolist():
        found.setdefault(row, reason)


def _refuse(found: dict[int, str], more: dict[int, str]) -> None:
    for row, reason in more.items():
        found.setdefault(row, reason)


def _memory(values: Array) -> memoryview:
    """Bytes of numbers; none if all are 0."""
    if not values.any():
        return memoryview(b"")
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def _numbers(memory: Any, dtype: str, count: int) -> Array:
    if not len(memory):
        return np.zeros(count, dtype)
    found = np.frombuffer(memory, dtype)
    if len(found) != count:
        raise ValueError(f"an entry of a graph's log has {len(found)} numbers for {count} rows: it is damaged")
    return found


def _puts(agents: list[str], vectors: Array, columns: Sequence[Any]) -> Puts:
    kinds = ("<u8", "<u8", "<i8", "<u8", "<f4")
    numbers = (_numbers(x, kind, len(agents)) for x, kind in zip(columns, kinds, strict=True))
    return Puts(agents, vectors, *numbers)


def _links(sources: list[str], targets: list[str], columns: Sequence[Any]) -> Links:
    kinds = ("<f4", "<u8", "<u8", "<i8")
    numbers = (_numbers(x, kind, len(sources)) for x, kind in zip(columns, kinds, strict=True))
    return Links(sources, targets, *numbers)
