"""Echo of 384-float rows on a GPU host: 8 client processes, a worker of 1, 2 or 4 fronts, plain nats-py beside it."""

from __future__ import annotations

import argparse
import asyncio
import os
from dataclasses import replace

from benchmarks import device_goals, device_run
from benchmarks.contestant import Contestant
from benchmarks.harness import entrants
from benchmarks.ours_echo_device import DEVICE_VARIABLE
from benchmarks.processes import raise_file_limit
from benchmarks.shapes import Shape
from benchmarks.standing import run_standing

MODULES = ("benchmarks.ours_echo_device", "benchmarks.peers.plain_nats")
PEERS = {"nats-request": frozenset({"awaited", "one"}), "nats-mux": frozenset({"awaited", "one", "agents"})}
"""The shapes of this host by peer; by name they are others than those of two cores."""
BASELINE = "nats-mux"
FILES_BESIDE = 512  # of a process, besides connections


def shapes(processes: int, agents: int, callers: int) -> list[Shape]:
    """The shapes, for so many client processes and agents, and callers in each process."""
    return [
        Shape("awaited", f"{processes} processes × {callers} awaited calls", processes=processes, callers=callers),
        Shape(
            "many",
            f"{processes} processes × 2 call_many(2,048 rows)",
            processes=processes,
            callers=2,
            rows_per_call=2048,
        ),
        Shape("one", "one caller"),
        Shape(
            "agents",
            f"{agents:,} agents in {processes} processes, a connection and a row in flight each",
            processes=processes,
            connections=agents // processes,
            ramp_s=1.0,
        ),
    ]


def run(options: argparse.Namespace) -> None:
    """Measure, print the tables, write the record."""
    device, quick = options.device, options.quick
    os.environ[DEVICE_VARIABLE] = device
    rounds = options.rounds or (2 if quick else 5)
    seconds = options.seconds or (0.75 if quick else 1.25)
    cores = len(os.sched_getaffinity(0))
    processes = max(2, min(8, cores // 2))
    agents = min(1024 if quick else 4096, 64 * cores * 4, raise_file_limit() - FILES_BESIDE)
    agents -= agents % processes
    chosen = [
        s
        for s in shapes(processes, agents, 512 if cores > 8 else 128)
        if not options.shapes or s.name in options.shapes
    ]
    able, skipped = entrants(MODULES, options.only)
    able = [(module, _on_this_host(one)) for module, one in able]
    if quick:
        able = [(module, one) for module, one in able if one.name != "aikoryu, 2 fronts"]
    samples, failed = asyncio.run(run_standing(able, chosen, rounds, seconds, device))
    device_run.finish(
        "bus",
        options,
        samples,
        baseline=BASELINE,
        shapes={shape.name: shape.as_dict() | {"rows_in_flight": shape.rows_in_flight} for shape in chosen},
        distributions=["nats-py", "numpy", "uvloop", *(name for _, one in able for name in one.needs)],
        skipped=skipped | failed,
        judged=device_goals.BUS_GOALS,
    )


def _on_this_host(contestant: Contestant) -> Contestant:
    """A peer in the shapes of this host."""
    return replace(contestant, shapes=PEERS.get(contestant.name, contestant.shapes))
