"""Ports and signatures as arrays, and what payloads fit: all signatures of a block of packets at once.

NumPy and torch run the same lines and give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np

from .packet_index import Array
from .protocols import CLIENT_PORTS, IP_PROTOCOLS, TCP_PORTS, UDP_PORTS, Protocol
from .signatures import SIGNATURES, TCP, UDP, Signature
from .window import window

WORD = 8
BLOCK_ROWS = 4096
"""Rows that are compared at once on a CPU; half as many and twice as many were slower (2 to 4 M packets/s)."""


@dataclass(frozen=True, eq=False)
class Forms:
    """The signatures of one transport protocol as arrays, ordered by the words they look at.

    Attributes:
        places: (8,) int64, the bytes of a word from its last on.
        tests: what is compared: offset of the word, which signatures, and their masks and values, (k, 1) int64.
        least: (signatures, 1) uint8, bytes of the payload.
        port: (signatures, 1) uint8, the protocol that a port must have; 0 for any.
        rank: (signatures, 1) uint8, the greatest of those that fit counts.
        protocol: (signatures + 1,) int64, by rank.
        at_port, by_port: (65536,) uint8, protocol of each port: for weak signatures, and for guesses.
    """

    places: Any
    tests: tuple[tuple[int, slice, Any, Any], ...]
    least: Any
    port: Any
    rank: Any
    protocol: Any
    at_port: Any
    by_port: Any

    def guessed(self, sport: Any, dport: Any, xp: Any) -> Any:
        """The protocol of the lower port that has one, which is likelier the server's: (n,) int64, 0 for none."""
        by_low = self.by_port[xp.minimum(sport, dport)]
        found = xp.where(by_low > 0, by_low, self.by_port[xp.maximum(sport, dport)])
        return xp.asarray(found, dtype=xp.int64)

    def seen(self, blob: Any, at: Any, captured: Any, ports: tuple[Any, Any], xp: Any) -> Any:
        """The protocol whose signature each payload fits, 0 for none: (n,) int64.

        Words may reach over the payload, or the blob; then no signature that looks so far fits.
        """
        if not len(blob):
            return captured * 0
        fits = xp.asarray(xp.clip(captured, 0, 255), dtype=xp.uint8) >= self.least
        fits &= (self.port == 0) | (self.port == self.at_port[ports[0]]) | (self.port == self.at_port[ports[1]])
        words = {offset: self._word(blob, at + offset, xp) for offset in {offset for offset, *_ in self.tests}}
        for offset, some, mask, value in self.tests:
            fits[some] &= (words[offset] & mask) == value
        return self.protocol[xp.asarray(xp.amax(fits * self.rank, 0), dtype=xp.int64)]

    def _word(self, blob: Any, at: Any, xp: Any) -> Any:
        """Eight bytes each, big-endian: (n,) int64."""
        if xp is np:
            return window(blob, at, WORD, np).u64(0).view(np.int64)
        return blob[xp.clip(at[:, None] + self.places, 0, len(blob) - 1)].view(xp.int64)[:, 0]


@dataclass(frozen=True, eq=False)
class Tables:
    """What labels are looked up in, in the memory of an array namespace.

    Attributes:
        ip_protocols: (256,) int64, protocol by the number of the IP header.
        forms: signatures by transport protocol.
        block_rows: rows that are compared at once.
    """

    ip_protocols: Any
    forms: dict[int, Forms]
    block_rows: int


@lru_cache(maxsize=8)
def tables_in(xp: Any, device: Any) -> Tables:
    """The tables in the memory of NumPy, or of torch on a device."""

    def there(values: Any, dtype: str = "i8") -> Any:
        array = np.asarray(values, dtype)
        return array if xp is np else xp.asarray(array, device=device)

    def numbered(protocols: dict[int, Protocol], size: int) -> Array:
        table = np.zeros(size, np.int64)
        table[list(protocols)] = list(protocols.values())
        return table

    def forms(transport: int, ports: dict[int, Protocol]) -> Forms:
        ranked = [signature for signature in SIGNATURES if transport in signature.transports]
        count = len(ranked)
        order = sorted(range(count), key=lambda place: sorted(_words(ranked[place])))
        ordered = [ranked[place] for place in order]
        at_port = numbered(ports, 1 << 16)

        def column(values: Iterable[int], dtype: str = "u1") -> Any:
            return there(np.array(list(values), dtype)[:, None], dtype)

        tests = [
            (offset, part, column((mask for mask, _ in found), "i8"), column((value for _, value in found), "i8"))
            for offset, part, found in _tests([_words(signature) for signature in ordered])
        ]
        return Forms(
            places=there(np.arange(WORD)[::-1].copy()),
            tests=tuple(tests),
            least=column(signature.reach() for signature in ordered),
            port=column(signature.protocol * signature.at_port for signature in ordered),
            rank=column(count - place for place in order),
            protocol=there([0, *(signature.protocol for signature in reversed(ranked))]),
            at_port=there(at_port, "u1"),
            by_port=there(np.where(np.arange(1 << 16) < CLIENT_PORTS, at_port, 0), "u1"),
        )

    return Tables(
        there(numbered(IP_PROTOCOLS, 256)),
        {TCP: forms(TCP, TCP_PORTS), UDP: forms(UDP, UDP_PORTS)},
        BLOCK_ROWS if xp is np else 1 << 16,
    )


def _tests(words: list[dict[int, tuple[int, int]]]) -> Iterator[tuple[int, slice, list[tuple[int, int]]]]:
    """Offset of a word, a run of signatures that look at it, and their masks and values; each signature has one or two.

    Args:
        words: of signatures, those with equal offsets beside each other.
    """
    for offsets, group in groupby(range(len(words)), key=lambda place: sorted(words[place])):
        places = list(group)
        for offset in offsets:
            yield offset, slice(places[0], places[-1] + 1), [words[place][offset] for place in places]


def _words(signature: Signature) -> dict[int, tuple[int, int]]:
    """Mask and value of the aligned words that a signature looks at, by offset, as signed numbers."""
    found: dict[int, tuple[int, int]] = {}
    for place, (mask, value) in signature.bytes().items():
        word, shift = place // WORD * WORD, 8 * (WORD - 1 - place % WORD)
        masks, values = found.get(word, (0, 0))
        found[word] = masks | mask << shift, values | value << shift
    signed = [tuple(number - (number >> 63 << 64) for number in pair) for pair in found.values()]
    return dict(zip(found, signed, strict=True))  # type: ignore[arg-type]
