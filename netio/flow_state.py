"""What a table of flows holds between two batches: enough for another to go on with, whichever path keeps it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .flow_record import RECORD
from .packet_index import Array


@dataclass(frozen=True, eq=False)
class FlowState:
    """The flows that have not ended, in any order, and what was counted.

    Attributes:
        packets: how many packets the table was given.
        ignored: how many of them had no IP header.
        records: (n,) of `flow_record.RECORD`, one a flow. One without packets is what the active time-out left.
        latest: (n,) int64, the clock of each flow, which a record without packets does not tell.
    """

    packets: int
    ignored: int
    records: Array
    latest: Array

    @classmethod
    def empty(cls) -> FlowState:
        """Of a table that was given nothing."""
        return cls(0, 0, np.zeros(0, RECORD), np.zeros(0, np.int64))
