"""What the demo shows: batches while they are formed, and the table at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from .demo_agents import COSINE, MATMUL, Tally
from .ls import Operated
from .table import table


class Forming:
    """Turns the workers' counters into what happens now: calls a second, and rows a batch."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, int, int]] = {}

    def line(self, operations: Iterable[Operated], now_s: float) -> str:
        """What happened since the last time, operation by operation."""
        parts = []
        for operated in operations:
            then_s, batches, rows = self._before.get(operated.name, (0.0, 0, 0))
            self._before[operated.name] = (now_s, operated.batches, operated.rows)
            if operated.batches > batches:
                rate = (operated.rows - rows) / (now_s - then_s)
                mean = (operated.rows - rows) / (operated.batches - batches)
                name = ".".join(operated.name.split(".")[:2])
                parts.append(f"{name} {rate:,.0f}/s, {mean:.1f} rows a batch")
        return " | ".join(parts)


def merged(parts: Iterable[Mapping[str, Tally]]) -> dict[str, Tally]:
    """The tallies of all processes together, by operation."""
    whole: dict[str, Tally] = {}
    for part in parts:
        for name, tally in part.items():
            one = whole.setdefault(name, Tally())
            one.calls += tally.calls
            one.mismatches += tally.mismatches
            one.latencies_us += tally.latencies_us
            one.error = one.error or tally.error
    return whole


def well(tallies: Mapping[str, Tally]) -> bool:
    """Whether every operation was called, and every call answered rightly."""
    return all(t.calls and t.answered == t.calls and not t.mismatches for t in tallies.values())


def figures(tallies: Mapping[str, Tally], operations: Iterable[Operated]) -> str:
    """The table: a column an operation."""
    told = {operated.name: operated for operated in operations}
    columns = [_column(tally, told.get(name, Operated(name, {}))) for name, tally in tallies.items()]
    rows = [[label, *(column[label] for column in columns)] for label in columns[0]]
    return table([["", *tallies], *rows], "<" + ">" * len(columns))


def verdict(tallies: Mapping[str, Tally]) -> str:
    """What it comes to, in a sentence or a few."""
    answered = sum(tally.answered for tally in tallies.values())
    if well(tallies):
        return f"All {answered:,} calls were answered, and every answer is right."
    wrong = sum(tally.mismatches for tally in tallies.values())
    missing = sum(tally.calls for tally in tallies.values()) - answered
    lines = [f"{wrong:,} answers are wrong, {missing:,} calls got no answer."]
    lines += [f"{name} was never called." for name, tally in tallies.items() if not tally.calls]
    lines += [f"{name}: {tally.error}" for name, tally in tallies.items() if tally.error]
    return "\n".join(lines)


def _column(tally: Tally, operated: Operated) -> dict[str, str]:
    batches = operated.batches
    p50, p99 = np.percentile(tally.latencies_us, (50, 99)) / 1000 if tally.answered else (0.0, 0.0)
    return {
        "calls": f"{tally.calls:,}",
        "batches": f"{batches:,}",
        "rows a batch, mean": f"{operated.rows / batches:,.1f}" if batches else "-",
        "rows a batch, most": f"{operated.largest:,}",
        "latency, p50": f"{p50:,.1f} ms",
        "latency, p99": f"{p99:,.1f} ms",
        "engine": ", ".join(sorted(operated.engines)) or "-",
        "answers checked": f"{tally.answered:,}",
        "answers wrong": f"{tally.mismatches:,}",
        "calls without an answer": f"{tally.calls - tally.answered:,}",
    }


def how_checked(tallies: Mapping[str, Tally]) -> str:
    """What "checked" means in the table."""
    lines = [
        "Each agent checks each of its answers: a product against NumPy's in float64,",
        "within float32's rounding bound (k * 2^-23 * |a||b|)",
    ]
    if tallies.keys() - {MATMUL}:
        lines[-1] += "; an embedding against"
        lines.append("the model written out once more, run without the bus, a sentence at a time, in")
        lines.append(f"a process of its own (cosine at least {COSINE})")
    return "\n".join(lines) + "."
