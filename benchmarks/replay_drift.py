"""How true a replay at 1 × keeps to its schedule: `python -m benchmarks.replay_drift --json OUT`, ten minutes.

Requests of `echo` go to a worker over NATS at random times that a seed gives. An item departs when the client hands its
frame to the connection, which writes it in the same turn of the loop.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import aikoryu
from aikoryu.agents.replay import Replay, Sent
from aikoryu.bus.columns import Array, pack
from aikoryu.bus.frames import Request
from aikoryu.netio.pacing import Plan, Run
from benchmarks import device_run, goals, loop, record
from benchmarks.goals import Goal, Value
from benchmarks.ours import NAME, NEEDS, serving
from benchmarks.record import Samples

SECONDS = 600.0
RATE = 100.0
SEED = 5
SHAPE = "schedule"
LAST = 100
ROW = np.arange(384, dtype=np.float32)[None]

GOALS = (
    Goal("replay at 1 ×: drift at the end, ms", Value(SHAPE, NAME, "drift_ms"), (), 1, None, "lower"),
    Goal("replay at 1 ×: error of the time between two, p99, ms", Value(SHAPE, NAME, "p99_ms"), (), 1, None, "lower"),
)


class Schedule:
    """Requests at random times, as a replay takes them.

    Args:
        seconds: from the first to about the last.
        rate: requests a second on the average.

    Attributes:
        times_ns: (n,) int64, when each is due; gaps are exponential.
        bits: (n,) int64, size of each.
    """

    def __init__(self, seconds: float, rate: float) -> None:
        gaps = np.random.default_rng(SEED).exponential(1e9 / rate, max(2, round(seconds * rate)))
        self.times_ns: Array = np.cumsum(gaps * (seconds * 1e9 / gaps.sum())).astype(np.int64)
        self.bits: Array = np.full(len(gaps), ROW.nbytes * 8)
        self._columns = {"x": pack(ROW)}

    def frames(self, run: Run) -> Iterator[Sent]:
        """A request an item."""
        for number in range(run.first, run.first + run.size):
            yield Sent("echo", Request(v=1, n=1, cols=self._columns, p=msgspec.Raw(b"\x80")), number)


class Noted:
    """A client that notes when it sends.

    Attributes:
        departed_ns: of each frame, on the monotonic clock.
    """

    def __init__(self, client: Any) -> None:
        self.departed_ns: list[int] = []
        self._client = client

    def send(self, frame: Any) -> None:
        """Send a frame."""
        self.departed_ns.append(time.monotonic_ns())
        self._client.send(frame)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def figures(due_ns: Array, departed_ns: Array) -> dict[str, float]:
    """How far departures are from their schedule, which begins with the first of them.

    Returns:
        `drift_ms`: how late the last one was; `drift_median_ms`: the middle of the last hundred, which one late turn of
        the loop does not change; `p50_ms`, `p99_ms`, `max_ms`: error of the time between one and the next.
    """
    late_ms = ((departed_ns - departed_ns[0]) - (due_ns - due_ns[0])) / 1e6
    errors = np.sort(np.abs(np.diff(departed_ns) - np.diff(due_ns)) / 1e6).tolist()
    found = {
        "drift_ms": abs(late_ms[-1]),
        "drift_median_ms": abs(np.median(late_ms[-LAST:])),
        **{f"{name}_ms": record.quantile(errors, record.QUANTILES[name]) for name in ("p50", "p99", "max")},
    }
    return {name: round(float(value), 4) for name, value in found.items()}


def main() -> None:
    """Replay the schedule, print the figures, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay_drift", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of the schedule (default {SECONDS:g})")
    parser.add_argument("--rate", type=float, default=RATE, help=f"requests a second (default {RATE:g})")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    options = parser.parse_args()
    schedule = Schedule(options.seconds, options.rate)
    samples: Samples = {SHAPE: {NAME: []}}
    loop.run(_measure(schedule, samples))
    title = f"{len(schedule.times_ns):,} requests in {options.seconds:g} s, at 1 ×"
    result = record.record(
        "replay_drift",
        samples,
        baseline=NAME,
        shapes={SHAPE: {"title": title, "seconds": options.seconds, "requests_per_s": options.rate}},
        distributions=NEEDS,
        skipped={},
    )
    result["figures"] = goals.judge(GOALS, samples)
    print(device_run.table(result) + "\n\n" + goals.table(result["figures"]))
    if options.json:
        record.write(result, options.json)


async def _measure(schedule: Schedule, samples: Samples) -> None:
    """Add a sample: the schedule once, after a few requests that nobody counts."""
    async with serving({"models.embed": ""}) as served, aikoryu.connect(served.address) as bus:
        await asyncio.gather(*(bus.call("echo", {"x": ROW[0]}) for _ in range(8)))
        client = Noted(bus.client)
        cpu_s = time.process_time()
        report = await Replay(client, schedule, Plan()).run()  # type: ignore[arg-type]
        cpu_s = time.process_time() - cpu_s
    answered = sum(tally.answered for tally in report.operations.values())
    errors = sum(sum(tally.errors.values()) for tally in report.operations.values())
    sample = record.sample(
        rows_per_s=round(report.paced.items_s, 3),
        late=report.paced.late,
        worst_ms=round(report.paced.worst_ns / 1e6, 4),
        cpu_us=round(cpu_s / len(schedule.times_ns) * 1e6, 2),
    )
    sample |= figures(schedule.times_ns, np.array(client.departed_ns))
    samples[SHAPE][NAME].append(sample | {"errors": errors, "unanswered": len(schedule.times_ns) - answered})


if __name__ == "__main__":
    main()
