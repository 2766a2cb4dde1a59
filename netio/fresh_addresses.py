"""New addresses for packets that are sent once more, so that their flows are new ones.

Of two addresses that speak to each other the lower one is lowered and the higher one raised by the same number. Both
directions of a flow stay one flow, and every checksum stays right: the sum of the two does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .packets import Headers, Packets

_BYTES = {4: 4, 6: 16}


def freshened(frames: Sequence[bytes], packets: Packets, by: int) -> list[bytes]:
    """The packets with other addresses in the first and the last IP header of each.

    What has no addresses, or such as would leave their end of the address space, stays as it is. Between the two
    headers nothing changes, nor in those that ICMP errors quote.

    Args:
        frames: the packets' bytes.
        packets: the same, dissected.
        by: what is added and subtracted, below 2**32; 0 changes nothing.
    """
    pairs = [_Pairs.of(packets.outer)]
    if packets.inner is not packets.outer:
        pairs.append(_Pairs.of(packets.inner))
    layers = packets.ip_headers.tolist()
    return [_shifted(frame, [each.at(row) for each in pairs[: layers[row]]], by) for row, frame in enumerate(frames)]


class _Pair(NamedTuple):
    """Addresses of one header, source and destination; `ends` tells the two apart where they are equal."""

    version: int
    source: int
    destination: int
    ends: tuple[int, int]


class _Pairs:
    """The addresses of a batch's headers."""

    def __init__(self, columns: list[list[int]]) -> None:
        self._columns = columns

    @classmethod
    def of(cls, headers: Headers) -> _Pairs:
        names = ("version", "src_high", "src_low", "dst_high", "dst_low", "sport", "dport")
        return cls([getattr(headers, name).tolist() for name in names])

    def at(self, row: int) -> _Pair:
        version, src_high, src_low, dst_high, dst_low, sport, dport = (column[row] for column in self._columns)
        return _Pair(version, src_high << 64 | src_low, dst_high << 64 | dst_low, (sport, dport))


def _shifted(frame: bytes, pairs: list[_Pair], by: int) -> bytes:
    position = 0
    for pair in pairs:
        size = _BYTES.get(pair.version, 0)
        old = _bytes(pair.source, pair.destination, size)
        position = frame.find(old, position) if size else -1
        if position < 0:  # no address, or a header that the capture has cut
            return frame
        source, destination = _apart(pair, by, 1 << 8 * size)
        frame = frame[:position] + _bytes(source, destination, size) + frame[position + 2 * size :]
        position += 2 * size
    return frame


def _apart(pair: _Pair, by: int, end: int) -> tuple[int, int]:
    _, source, destination, (sport, dport) = pair
    step = by if (source, sport) > (destination, dport) else -by
    if min(source + step, destination - step) < 0 or max(source + step, destination - step) >= end:
        return source, destination
    return source + step, destination - step


def _bytes(source: int, destination: int, size: int) -> bytes:
    return source.to_bytes(size, "big") + destination.to_bytes(size, "big")
