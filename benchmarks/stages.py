"""What each stage of a batch took, from the Prometheus metrics of a worker's fronts."""

from __future__ import annotations

import asyncio
import statistics
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

STAGES = ("queue", "window", "staging", "device", "reply")
SUMMED = ("queue", "staging", "device", "reply")
"""The stages that follow each other; the window is a part of the queue."""
_ROWS = "batch_rows"
_PREFIX = "aikoryu_"
TIMEOUT_S = 10.0

Counts = Mapping[str, float]
"""Sums and counts of the histograms over all fronts and operations, by name without prefix."""


async def read(addresses: Sequence[str]) -> Counts:
    """The counts so far of the fronts at these addresses."""
    total: dict[str, float] = {}
    for text in await asyncio.gather(*(asyncio.to_thread(_fetch, address) for address in addresses)):
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            if name.startswith(_PREFIX) and name.endswith(("_sum", "_count")):
                name = name.removeprefix(_PREFIX)
                total[name] = total.get(name, 0.0) + float(value)
    return total


def between(before: Counts, after: Counts) -> dict[str, Any]:
    """What the batches between two reads took: by stage the mean in µs a batch and the share of all stages' time.

    A batch's device time is that of the run it was part of, so runs of several fronts count once for each.
    """
    spent = {name: after.get(name, 0.0) - before.get(name, 0.0) for name in after}
    batches = spent.get(f"{_ROWS}_count", 0.0)
    if not batches:
        return {}
    seconds = {stage: spent.get(f"{stage}_seconds_sum", 0.0) for stage in STAGES}
    whole = sum(seconds[stage] for stage in SUMMED) or 1.0
    found: dict[str, Any] = {
        stage: {"mean_us": round(took / batches * 1e6, 1), "share": round(took / whole, 4)}
        for stage, took in seconds.items()
    }
    return found | {"batches": int(batches), "rows_a_batch": round(spent[f"{_ROWS}_sum"] / batches, 1)}


def medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What `between` gave in each of several samples (`stages`) as medians; None unless all have it."""
    found = [one.get("stages") for one in rounds]
    if not found or not all(found):
        return None
    stages = {
        stage: {key: statistics.median(one[stage][key] for one in found if one) for key in ("mean_us", "share")}
        for stage in STAGES
    }
    counts = {key: statistics.median(one[key] for one in found if one) for key in ("batches", "rows_a_batch")}
    return {**stages, **counts}


def line(name: str, found: Mapping[str, Any]) -> str:
    """The medians as text."""
    parts = [f"{stage} {found[stage]['mean_us']:,.0f} µs ({found[stage]['share']:.0%})" for stage in STAGES]
    return f"  a batch of {name}: {found['rows_a_batch']:,.0f} rows; " + ", ".join(parts)


def _fetch(address: str) -> str:
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
        text: str = answer.read().decode()
        return text
