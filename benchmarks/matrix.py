"""Matrices on a device: `python -m benchmarks.matrix --device cuda [--quick] [--json OUT]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from benchmarks import copies, device_goals, device_run, front_to_front, loop, oversize, products
from benchmarks.engine_feed import feeding
from benchmarks.record import Samples

SLACK_BYTES = 1 << 20
LIMIT_S = 60.0  # of one part; what takes longer hangs, and is left out
OVERSIZE_SIDE = {"cpu": 1024, "cuda": 16_384}
QUICK_SIDE = {"cpu": 512, "cuda": 8192}


def main() -> None:
    """Measure, print the tables, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matrix", description=__doc__)
    device_run.add_arguments(parser)
    parser.add_argument("--rounds", type=int, help="times that everything is measured (default 5, or 2)")
    parser.add_argument("--seconds", type=float, help="least length of one measurement (default 0.25, or 0.1)")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    options = parser.parse_args()
    options.device = options.device or "cpu"
    rounds = options.rounds or (2 if options.quick else 5)
    seconds = options.seconds or (0.1 if options.quick else 0.25)
    loop.run(_measure(options, rounds, seconds))


async def _measure(options: argparse.Namespace, rounds: int, seconds: float) -> None:
    import torch

    device = options.device
    torch.set_grad_enabled(False)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    samples: Samples = {}
    shapes, skipped = front_to_front.shapes(), dict[str, str]()
    cases = products.cases(device, options.quick)
    slab_bytes = max(front_to_front.SLAB_BYTES, 3 * max(case.operand_bytes for case in cases)) + SLACK_BYTES
    with device_run.guarded("engine", skipped):
        async with feeding(device, slab_bytes) as feed:
            for number in range(rounds):
                _say(f"front to front, round {number + 1}")
                times = front_to_front.TIMES // (4 if options.quick else 1)
                with device_run.guarded("front to front", skipped):
                    async with asyncio.timeout(LIMIT_S):
                        await front_to_front.measure(feed, device, samples, times)
            for case in cases:
                _say(case.about()["title"])
                shapes[case.name] = case.about()
                with device_run.guarded(case.name, skipped):
                    async with asyncio.timeout(LIMIT_S):
                        await _case(products.Products(case, feed, device, seconds), rounds, samples, skipped)
    _say("larger than the budget")
    side = (QUICK_SIDE if options.quick else OVERSIZE_SIDE)[device]
    shapes[oversize.SHAPE] = oversize.about(side)
    with device_run.guarded(oversize.SHAPE, skipped):
        async with asyncio.timeout(LIMIT_S):
            await oversize.measure(device, side, rounds, seconds, samples)
    found = copies.copied_alone(device, 256 << 20, seconds)
    print("copies alone, GB/s: " + ", ".join(f"{way} {rate}" for way, rate in found.items()))
    device_run.finish(
        "matrix",
        options,
        samples,
        baseline=products.BARE,
        shapes=shapes,
        distributions=["numpy", "torch", "msgspec", "uvloop"],
        skipped=skipped,
        judged=device_goals.MATRIX_GOALS,
        more={"copies_gb_per_s": found},
    )


async def _case(case: products.Products, rounds: int, samples: Samples, skipped: dict[str, str]) -> None:
    """Prepare a case, measure its rounds, leave nothing of it."""
    await case.prepare()
    skipped |= {f"{name}, {case.case.name}": reason for name, reason in case.skipped.items()}
    for _ in range(rounds):
        await case.round(samples)
    await case.free()
    case.release()


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
