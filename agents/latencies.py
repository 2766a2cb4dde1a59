"""How long things took, in bounded memory."""

from __future__ import annotations

import math

import numpy as np

STEP = 1.02  # from one class to the next: a quantile is off by 1 % at most
_CLASSES = math.ceil(math.log(86_400e9) / math.log(STEP)) + 1  # up to a day


class Latencies:
    """Counts of latencies in classes of 2 % width, from 1 ns to a day."""

    def __init__(self) -> None:
        self._counts = np.zeros(_CLASSES, np.int64)
        self.count = 0
        self.longest_ns = 0

    def add(self, latency_ns: int) -> None:
        """One more."""
        place = math.log(max(latency_ns, 1)) / math.log(STEP)
        self._counts[min(int(place), _CLASSES - 1)] += 1
        self.count += 1
        self.longest_ns = max(self.longest_ns, latency_ns)

    def quantile_s(self, share: float) -> float:
        """The latency that this share of them did not exceed, s; 0 if there are none."""
        if not self.count:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self._counts), share * self.count))
        return float(min(STEP ** (place + 0.5), self.longest_ns)) / 1e9
