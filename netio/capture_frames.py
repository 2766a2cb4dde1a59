"""The packets of a capture as rows of requests: what a replay sends, loop after loop."""

from __future__ import annotations

import numpy as np

from .capture import Capture
from .dissect import dissect
from .fresh_addresses import freshened
from .pacing import Run
from .packet_index import Array

Rows = dict[str, Array | list[bytes]]


class CaptureFrames:
    """Packets in the order of a capture, and when each of them was captured.

    Args:
        capture: an open one; its index is kept in memory.
        unique_addresses: give each loop but the first addresses of its own.

    Attributes:
        times_ns: (n,) int64; of a packet without a time that of the one before.
        bits: (n,) int64, on the wire.
    """

    def __init__(self, capture: Capture, *, unique_addresses: bool = False) -> None:
        self._capture = capture
        self._unique_addresses = unique_addresses
        self._index = index = capture.index
        latest = np.maximum.accumulate(np.where(index.timed, np.arange(len(index)), -1))
        untimed = index.time_ns[index.timed][:1] if index.timed.any() else np.zeros(1, np.int64)
        self.times_ns: Array = np.where(latest >= 0, index.time_ns[latest], untimed) if len(index) else index.time_ns
        self.bits: Array = index.wire.astype(np.int64) * 8

    def __len__(self) -> int:
        return len(self._index)

    def rows(self, run: Run) -> Rows:
        """Some packets as the columns that the packets operations take.

        Returns:
            `frame`, their bytes; `time` i8, ns since 1970, later in each loop by the length of the capture, so that
            flows do not end before they begin; `wire` u4, bytes on the wire; `link` u2, link types.
        """
        part = slice(run.first, run.first + run.size)
        index = self._index[part]
        blob = self._capture.blob
        ends = index.offset + index.captured
        frames = [blob[a:b].tobytes() for a, b in zip(index.offset.tolist(), ends.tolist(), strict=True)]
        if self._unique_addresses and run.loop:
            packets = dissect(blob, index.offset, index.captured, index.link, index.wire)
            frames = freshened(frames, packets, run.loop)
        length_ns = int(self.times_ns.max() - self.times_ns.min()) + 1
        times = self.times_ns[part] + run.loop * length_ns
        return {"frame": frames, "time": times, "wire": index.wire, "link": index.link}
