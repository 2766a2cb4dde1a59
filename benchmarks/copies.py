"""Copies between host and device alone: what the way there and back allows, both directions at once."""

from __future__ import annotations

import time
from typing import Any

import numpy as np


class Copies:
    """Page-locked memory and streams for copies of so many bytes; on the CPU plain copies in memory.

    Args:
        device: `cpu` or `cuda`.
        in_bytes, out_bytes: to the device and from it.
    """

    def __init__(self, device: str, in_bytes: int, out_bytes: int) -> None:
        self._device = device
        self._sizes = (in_bytes, out_bytes)
        if device == "cpu":
            self._arrays = [np.full(size, 7, np.uint8) for size in (in_bytes, in_bytes, out_bytes, out_bytes)]
            return
        import torch

        self._streams = (torch.cuda.Stream(), torch.cuda.Stream())
        self._host = [torch.randint(255, (size,), dtype=torch.uint8).pin_memory() for size in self._sizes]
        self._there = [torch.randint(255, (size,), dtype=torch.uint8, device=device) for size in self._sizes]

    def seconds_each(self, least_s: float) -> float:
        """Seconds of one pair of copies, in and out at the same time, many in a row."""
        once = self._run(1)
        return self._run(max(2, round(least_s / max(once, 1e-7))))

    def gigabytes_per_s(self, least_s: float) -> float:
        """Bytes of both directions together, 10⁹ a second."""
        return sum(self._sizes) / self.seconds_each(least_s) / 1e9

    def _run(self, times: int) -> float:
        start = time.perf_counter()
        if self._device == "cpu":
            source, target, back, out = self._arrays
            for _ in range(times):
                np.copyto(target, source)
                np.copyto(out, back)
            return (time.perf_counter() - start) / times
        import torch

        inward, outward = self._streams
        for _ in range(times):
            with torch.cuda.stream(inward):
                self._there[0].copy_(self._host[0], non_blocking=True)
            with torch.cuda.stream(outward):
                self._host[1].copy_(self._there[1], non_blocking=True)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / times


def copied_alone(device: str, size: int, least_s: float) -> dict[str, Any]:
    """GB/s of one direction at a time and of both at once, with so many bytes each way."""
    ways = {"in": (size, 1), "out": (1, size), "both": (size, size)}
    return {name: round(Copies(device, *sizes).gigabytes_per_s(least_s), 2) for name, sizes in ways.items()}
