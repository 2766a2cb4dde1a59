"""What the kernels of `flows.cu` and who launches them share: structs as NumPy knows them, and numbers."""

from __future__ import annotations

import numpy as np

from ...netio.flow_record import RECORD
from ...netio.tcp_state import REPEATED

CHUNK = 256
"""Packets of one flow that one thread adds up: the threads of longer runs each make a part, and these are joined."""

ARRIVAL = np.dtype(
    [
        ("time_ns", "i8"),
        ("row", "u4"),
        ("wire", "u4"),
        ("ip", "u4"),
        ("payload", "u4"),
        ("seq", "u4"),
        ("code", "u1"),
        ("flags", "u1"),
        ("icmp", "u1", 2),
    ],
    align=True,
)
"""What a flow is told of a packet, in one sector of memory: packets are read in the order of their flows.

- row: of the piece. code: twice the packet's `Kind`, and one more where the second end of the key sent it. flags: those
  that are counted. All else as `flow_batch.Arrivals` has it.
"""

PART = np.dtype([("record", RECORD), ("first_seqs", "u4", (2, len(REPEATED)))], align=True)
"""A record of some packets in the middle of a flow.

- first_seqs: sequence number of the first letter of each kind in `REPEATED`, which may repeat one of an earlier part.
"""

WORDS = RECORD.itemsize // 8
"""A record as words, which is how torch moves it."""

SLOTS = {"OPEN": 0, "LIVE": 1, "EMPTY": 2}
"""What is in a slot of the table; EMPTY: a record without packets, whose flow goes on after its active time-out."""
BEGINS = {"NOT": 0, "ANEW": 1, "CUT": 2}
"""Whether a record begins with a packet: not; yes; yes, because the active time-out ended the one before."""
DUE = {"NOT": 0, "IDLE": 1, "ACTIVE": 2, "CUT": 3}
"""What has become of a flow: nothing; it ended, and whether idle or by the active time-out; it was cut, and goes on."""
