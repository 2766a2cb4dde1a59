"""What is kept of a flow: one record of fixed size, integers alone, so that every path computes the same bits.

Sides are the ends of the flow's key (`FlowKeys`), not originator and responder: who that is may be known later.
"""

from __future__ import annotations

import numpy as np

from .flow_key import WORDS
from .packet_index import Array
from .tcp_state import CODES, REPEATED

FIRST = 8
"""Packets of each side of which size and gap are kept one by one."""
MOST_LETTERS = 32
MOST_REPEATS = MOST_LETTERS - CODES
"""Letters beyond the first of each kind and side; those after them are not recorded, and change no state."""
FLAGS = 8
"""FIN, SYN, RST, PSH, ACK, URG, ECE, CWR: bits 0 to 7."""

RECORD = np.dtype(
    [
        ("key", "u8", WORDS),
        ("serial", "u8"),
        ("begun_ns", "i8", 2),
        ("latest_ns", "i8", 2),
        ("packets", "u8", 2),
        ("wire_bytes", "u8", 2),
        ("ip_bytes", "u8", 2),
        ("payload_bytes", "u8", 2),
        ("size_squares", "u8", 2),
        ("gap_squares", "u8", 2),
        ("gap_least_ns", "u8", 2),
        ("gap_most_ns", "u8", 2),
        ("size_least", "u4", 2),
        ("size_most", "u4", 2),
        ("flag_counts", "u4", (2, FLAGS)),
        ("first_sizes", "u4", (2, FIRST)),
        ("first_gaps_us", "u4", (2, FIRST)),
        ("last_seqs", "u4", (2, len(REPEATED))),
        ("seen", "u4"),
        ("letters", "u1", MOST_LETTERS),
        ("letter_count", "u1"),
        ("repeats", "u1"),
        ("origin", "u1"),
        ("is_continued", "?"),
        ("icmp", "u1", 2),
    ],
    align=True,
)
"""Of each flow:

- key: `FlowKeys.words`. serial: the number of the packet that began it, among all the table was given.
- begun_ns, latest_ns: the clock at the first and the last packet of each side, 0 where there is none.
- packets, wire_bytes, ip_bytes, payload_bytes: of each side.
- size_squares: of bytes on the wire; gap_squares: of whole microseconds between a side's packets. 2**64 - 1 for more.
- gap_least_ns, gap_most_ns, size_least, size_most: the least is the largest number there is where there is none.
- flag_counts: packets with each TCP flag. first_sizes, first_gaps_us: of each side's first packets; 2**32 - 1 for more.
- last_seqs: sequence number of the last letter of each kind in `REPEATED`.
- seen: bit c says that the letter of code c has come. letters: their codes plus one, in order. repeats: how many of
  them are not the first of their code.
- origin: the side that sent the first packet, or, where `is_continued`, was the originator before the cut.
- icmp: type and code of the flow's first packet, whether or not a time-out has cut it since.

A record without packets is what is left of a flow that its active time-out has cut, until packets or its end come.
"""

MOST_U4 = np.uint64(2**32 - 1)
MOST_U8 = np.uint64(2**64 - 1)


def empty(rows: int) -> Array:
    """Records of flows without packets."""
    records: Array = np.zeros(rows, RECORD)
    records["gap_least_ns"] = MOST_U8
    records["size_least"] = MOST_U4
    return records


def as_blocks(records: Array) -> Array:
    """The same memory as rows without fields, which NumPy stores eight times as fast."""
    blocks: Array = records.view(f"V{RECORD.itemsize}")
    return blocks


def originators(records: Array) -> Array:
    """The side that began each flow: (n,) uint8.

    It is the sender of the first SYN, or who the first SYN-ACK went to; without either it is `origin`.
    """
    letters = records["letters"]
    decides = _decide(letters)
    first = letters[np.arange(len(letters)), decides.argmax(axis=1)] - 1
    # Codes 0 and 3, a SYN of side 0 and a SYN-ACK of side 1, say side 0.
    said = ((first ^ (first >> 1)) & 1).astype(np.uint8)
    found: Array = np.where(decides.any(axis=1), said, records["origin"])
    return found


def is_decided(records: Array) -> Array:
    """Whether a SYN or SYN-ACK says who began each flow: (n,) bool."""
    decided: Array = (records["seen"] & 0xF) > 0
    return decided


def spans(records: Array) -> tuple[Array, Array]:
    """The clocks at the first and at the last packet of each record: int64; they mean nothing where it has none."""
    has = records["packets"] > 0
    begun = np.where(has, records["begun_ns"], LATEST).min(axis=1)
    latest = np.where(has, records["latest_ns"], EARLIEST).max(axis=1)
    return begun, latest


def _decide(letters: Array) -> Array:
    """Which letters are a SYN or SYN-ACK: codes 0 to 3."""
    decides: Array = (letters - np.uint8(1)) < 4
    return decides


EARLIEST, LATEST = np.int64(-(2**63)), np.int64(2**63 - 1)
