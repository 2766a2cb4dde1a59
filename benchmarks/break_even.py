"""From which batch on the bus beats computing row by row in one's own process: `python -m benchmarks.break_even`."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import aikoryu
from benchmarks import loop, minilm, record
from benchmarks.ours import NEEDS, serving
from benchmarks.ours_embed import MODEL
from benchmarks.shapes import ROW_FLOATS

LARGEST = 1024
MOST_BYTES = 64 << 20  # of one call's columns
POINT_S = 0.25
LEAST_REPEATS, MOST_REPEATS = 3, 200
TIMEOUT_S = 600.0
TEXT_TOKENS = 16

Columns = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """An operation on rows of one size.

    Attributes:
        title: for people.
        operation: its name on the bus.
        columns: as many rows as are asked at most.
        answer: the column that comes back.
        alone: ways to compute one row in this process, from its values in the columns' order; the fastest counts.
    """

    title: str
    operation: str
    columns: Columns
    answer: str
    alone: tuple[Callable[..., Any], ...]

    @property
    def rows(self) -> int:
        """Rows in the columns."""
        return len(next(iter(self.columns.values())))

    def first(self, rows: int) -> Columns:
        """The columns' first rows."""
        return {name: values[:rows] for name, values in self.columns.items()}


def cases(largest: int) -> list[Case]:
    """The built-in operations, with `largest` rows or what 64 MiB hold; the model only where it is installed."""
    draw = np.random.default_rng(0)

    def matrices(side: int) -> Columns:
        rows = max(1, min(largest, MOST_BYTES // (2 * 4 * side * side)))
        return {name: draw.standard_normal((rows, side, side), dtype=np.float32) for name in ("a", "b")}

    found = [Case("echo, 384 f32", "echo", {"x": draw.random((largest, ROW_FLOATS), np.float32)}, "x", (np.copy,))]
    for operation, function, sides in (("matmul", np.matmul, (16, 64, 256)), ("add", np.add, (16, 64, 256))):
        for side in sides:
            name = f"matrix.{operation}"
            found.append(Case(f"{name}, {side}² f32", name, matrices(side), "c", (function,)))
    if not missing_model():
        texts = minilm.sentences(largest, TEXT_TOKENS, TEXT_TOKENS, seed=0)
        title = f"models.embed, {TEXT_TOKENS} tokens"
        found.append(Case(title, f"models.embed.{MODEL}", {"text": texts}, "embedding", _unbatched()))
    return found


def _unbatched() -> tuple[Callable[[str], Any], ...]:
    """The model on one text, with one thread and with every core: beside a busy worker, more threads can be slower."""
    import torch

    cores = len(os.sched_getaffinity(0))
    os.environ[minilm.THREADS_VARIABLE] = str(cores)
    encoder = minilm.Encoder()

    def embed(threads: int, text: str) -> Any:
        torch.set_num_threads(threads)
        return encoder.embed([text])[0]

    return tuple(partial(embed, threads) for threads in sorted({1, cores}))


def missing_model() -> list[str]:
    """What the embedding lacks here."""
    versions = record.versions(minilm.NEEDS)
    return [name for name in minilm.NEEDS if versions[name] is None]


async def measure(largest: int = LARGEST) -> list[dict[str, Any]]:
    """Every case: seconds a row alone and, by batch size, over the bus.

    Raises:
        RuntimeError: the bus answered something else than this process computes.
    """
    settings = {"models.embed": "" if missing_model() else MODEL}
    async with serving(settings) as served, aikoryu.connect(served.address) as bus:
        return [await _measure(bus, case) for case in cases(largest)]


async def _measure(bus: aikoryu.Bus, case: Case) -> dict[str, Any]:
    await _check(bus, case)
    before = _alone_s(case)
    asked = {rows: await _asked_s(bus, case, rows) for rows in sizes(case.rows)}
    return summary(case, statistics.mean((before, _alone_s(case))), asked)


def sizes(largest: int) -> list[int]:
    """1, 2, 4 and so on."""
    return [1 << power for power in range(largest.bit_length())]


async def _check(bus: aikoryu.Bus, case: Case) -> None:
    """Ask a few rows, which warms up as well, and compare them with this process's own."""
    few = case.first(8)
    answers = (await bus.call_many(case.operation, few, timeout_s=TIMEOUT_S))[case.answer]
    own = np.stack([case.alone[0](*row) for row in zip(*few.values(), strict=True)])
    if not np.allclose(answers, own, rtol=1e-3, atol=1e-3):
        raise RuntimeError(f"{case.title}: the bus and this process disagree by {np.abs(answers - own).max():.2g}")


def _alone_s(case: Case) -> float:
    """Seconds a row, row by row, in the fastest way."""
    rows = list(zip(*case.first(64).values(), strict=True))
    return min(_row_by_row_s(alone, rows) for alone in case.alone)


def _row_by_row_s(alone: Callable[..., Any], rows: list[tuple[Any, ...]]) -> float:
    """Median seconds a row over as many chunks as fit into the time of a point."""
    chunks: list[float] = []
    end = time.perf_counter() + POINT_S
    while not chunks or time.perf_counter() < end:
        start = time.perf_counter()
        for row in rows:
            alone(*row)
        chunks.append((time.perf_counter() - start) / len(rows))
    return statistics.median(chunks)


async def _asked_s(bus: aikoryu.Bus, case: Case, rows: int) -> float:
    """Median seconds a row of a call with so many rows, nothing else being asked."""
    columns, calls = case.first(rows), list[float]()
    end = time.perf_counter() + POINT_S
    while len(calls) < LEAST_REPEATS or (time.perf_counter() < end and len(calls) < MOST_REPEATS):
        start = time.perf_counter()
        await bus.call_many(case.operation, columns, timeout_s=TIMEOUT_S)
        calls.append((time.perf_counter() - start) / rows)
    return statistics.median(calls)


def summary(case: Case, alone_s: float, asked_s: dict[int, float]) -> dict[str, Any]:
    """A case's times in µs a row, its break-even batch and its best batch.

    The break-even batch is the smallest from which on the bus is cheaper at every size measured; None if there is none.
    """
    break_even = None
    for rows in sorted(asked_s, reverse=True):
        if asked_s[rows] >= alone_s:
            break
        break_even = rows
    best = min(asked_s, key=lambda rows: asked_s[rows])
    return {
        "case": case.title,
        "operation": case.operation,
        "alone_us": round(alone_s * 1e6, 3),
        "bus_us": {str(rows): round(seconds * 1e6, 3) for rows, seconds in asked_s.items()},
        "largest": max(asked_s),
        "break_even": break_even,
        "best": best,
        "best_ratio": round(alone_s / asked_s[best], 3),
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """The cases as text."""
    form = "{:<24}{:>11}{:>12}{:>12}{:>17}{:>12}{:>11}"
    head = ("µs a row", "alone", "bus, 1 row", "at best", "break-even batch", "best batch", "bus is")
    return "\n".join([form.format(*head), *(form.format(one["case"], *cells(one)) for one in found)])


def cells(one: dict[str, Any]) -> tuple[str, ...]:
    """A case's figures for people: µs alone, of one row, of a row in the best batch; both batches; times faster."""
    bus = one["bus_us"]
    times = (one["alone_us"], bus["1"], bus[str(one["best"])])
    return (
        *(f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in times),
        f"none up to {one['largest']}" if one["break_even"] is None else str(one["break_even"]),
        str(one["best"]),
        f"{one['best_ratio']:.2g} ×",
    )


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.break_even", description=__doc__)
    parser.add_argument("--largest", type=int, default=LARGEST, help=f"largest batch (default {LARGEST})")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    options = parser.parse_args()

    async def run() -> None:
        result = record.about("break_even", [*NEEDS, *minilm.NEEDS, "nats-py"])
        result["break_even"] = await measure(options.largest)
        print(table(result["break_even"]))
        if options.json:
            record.write(result, options.json)

    loop.run(run())


if __name__ == "__main__":
    main()
