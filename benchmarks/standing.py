"""Rounds against servers that stand all the time: what takes seconds to start, a GPU's engine, is started once.

Servers that nobody asks sleep, so those of the other contestants cost the one that is measured nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence
from typing import Any

from benchmarks.contestant import Contestant, Served
from benchmarks.gpu_watch import watching
from benchmarks.harness import failed, loading, show_progress, window
from benchmarks.record import Samples
from benchmarks.shapes import Shape

Entry = tuple[str, Contestant]


async def run_standing(
    able: Sequence[Entry], shapes: Sequence[Shape], rounds: int, seconds: float, device: str
) -> tuple[Samples, dict[str, str]]:
    """Measure every contestant in each of its shapes, once a round, as `harness.run_rounds` but without restarts.

    Args:
        able: contestants with their modules.
        shapes: in which they are measured, one shape after the other.
        rounds: windows of each.
        seconds: length of a window.
        device: whose GPU is watched meanwhile.

    Returns:
        The samples, and who could not be started, with the reason.
    """
    samples: Samples = {}
    skipped: dict[str, str] = {}
    async with contextlib.AsyncExitStack() as stack:
        served: dict[str, Served] = {}
        starting = [stack.enter_async_context(contestant.serve()) for _, contestant in able]
        for (_, contestant), found in zip(able, await asyncio.gather(*starting, return_exceptions=True), strict=True):
            if isinstance(found, BaseException):
                skipped[contestant.name] = f"{type(found).__name__}: {found}"
            else:
                served[contestant.name] = found
        for shape in shapes:
            runners = [one for one in able if shape.name in one[1].shapes and one[1].name in served]
            try:
                samples[shape.name] = await _rounds_of(shape, runners, served, rounds, seconds, device)
            except (RuntimeError, OSError, TimeoutError) as error:
                skipped[shape.name] = f"{type(error).__name__}: {error}"
                print(f"{shape.name}: {skipped[shape.name]}", file=sys.stderr, flush=True)
    return samples, skipped


async def _rounds_of(
    shape: Shape, runners: Sequence[Entry], served: dict[str, Served], rounds: int, seconds: float, device: str
) -> dict[str, list[dict[str, Any]]]:
    """The samples of one shape by contestant, whose order rotates from round to round."""
    found: dict[str, list[dict[str, Any]]] = {contestant.name: [] for _, contestant in runners}
    async with contextlib.AsyncExitStack() as stack:
        loads: dict[str, list[Process]] = {}
        for module, contestant in runners:  # one after the other: thousands of connections at once would time out
            load = loading(module, contestant, served[contestant.name], shape, seconds, seed=len(loads))
            loads[contestant.name] = await stack.enter_async_context(load)
        for number in range(rounds):
            shift = number % len(runners) if runners else 0
            for _, contestant in [*runners[shift:], *runners[:shift]]:
                name = contestant.name
                with watching(device) as watch:
                    try:
                        sample = await window(loads[name], served[name], shape, seconds)
                    except (RuntimeError, OSError, TimeoutError) as error:
                        sample = failed(error)
                sample |= {
                    key: watch.figures[key] for key in ("gpu_busy", "sm_active", "gpu_watts") if key in watch.figures
                }
                if sample.get("rows_per_s") and "gpu_joules" in watch.figures:
                    rows = sample["rows_per_s"] * (seconds + shape.ramp_s)
                    sample["joules_per_1000"] = round(watch.figures["gpu_joules"] / rows * 1000, 4)
                found[name].append(sample)
                show_progress(number + 1, shape, contestant, sample)
    return found
