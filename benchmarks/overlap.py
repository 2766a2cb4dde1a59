"""One profile of an engine's streams: copies in, kernels and copies out, side by side. For docs/overlap.svg.

PYTHONPATH=src:. python3 -m benchmarks.overlap docs/overlap.svg
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aikoryu.bus.columns import Field
from aikoryu.gpu.device import Device, open_device
from aikoryu.gpu.executor import Executor, Piece, Running
from aikoryu.gpu.job import Job, Part
from aikoryu.gpu.registry import Catalogue, load
from aikoryu.gpu.slab import Slab, align

ROWS, SIDE = 2048, 64  # 32 MiB in a batch of pairs, 32 MiB out
STREAMS = 3
BATCHES = 18
SHOWN_US = 9000.0
COLOURS = {"copy in": "#4c78a8", "kernel": "#f58518", "copy out": "#54a24b"}


class Bar(NamedTuple):
    """Something the device did.

    Attributes:
        stream: number of the CUDA stream.
        kind: a key of `COLOURS`.
        start_us, length_us: on the device's clock.
    """

    stream: int
    kind: str
    start_us: float
    length_us: float


def main(path: Path) -> None:
    """Run batches of products on all streams, profile them, and draw what overlapped."""
    device = open_device("cuda:0", threads=1)
    executor = Executor(load(Catalogue()), device)
    executor.load()
    bars = _profile(executor, device)
    busy = _share_overlapped(bars)
    _draw(bars, path, device, busy)
    print(f"{len(bars)} copies and kernels on {STREAMS} streams, {busy:.0%} of the copies beside other work: {path}")


def _profile(executor: Executor, device: Device) -> list[Bar]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    slabs = [Slab.create(128 << 20) for _ in range(STREAMS)]
    for slab in slabs:
        device.register(slab)
        _fill(slab)
    _run(executor, slabs)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        _run(executor, slabs)
        torch.cuda.synchronize()
    bars = [_bar(event) for event in profiled.profiler.kineto_results.events() if event.device_type().name == "CUDA"]
    first = min(bar.start_us for bar in bars)
    return [bar._replace(start_us=bar.start_us - first) for bar in bars if bar.start_us - first < SHOWN_US]


def _run(executor: Executor, slabs: list[Slab]) -> None:
    """Keep every stream supplied, as the engine does."""
    running: list[Running | None] = [None] * STREAMS
    for number in range(BATCHES):
        stream = number % STREAMS
        before = running[stream]
        if before is not None:
            before.wait()
        running[stream] = executor.start([Piece(_job(number), slabs[stream])], stream)
    for last in running:
        if last is not None:
            last.wait()


def _fill(slab: Slab) -> None:
    """Rows of all batches of a slab: alive, their matrices random."""
    slab.view[:ROWS] = b"\1" * ROWS
    shape = (2 * ROWS, SIDE, SIDE)
    slab.array(align(ROWS), np.dtype("<f4"), shape)[...] = np.random.default_rng().random(shape, np.float32)


def _job(number: int) -> Job:
    field = Field("f4", (SIDE, SIDE))
    size = ROWS * field.row_bytes
    parts = [Part(name, field, align(ROWS) + index * size, size) for index, name in enumerate("ab")]
    return Job(number, 0, "matrix.matmul", ROWS, parts, b"\x80", 0, align(ROWS) + 2 * size)


def _bar(event: Any) -> Bar:
    name = event.name()
    kind = "copy in" if "HtoD" in name else "copy out" if "DtoH" in name else "kernel"
    return Bar(event.device_resource_id(), kind, event.start_ns() / 1e3, event.duration_ns() / 1e3)


def _share_overlapped(bars: list[Bar]) -> float:
    """Of the time in which something is copied, the share in which another stream works too."""
    copies = shared = 0.0
    for bar in bars:
        if bar.kind == "kernel":
            continue
        copies += bar.length_us
        spans = sorted(
            (max(other.start_us, bar.start_us), min(other.start_us + other.length_us, bar.start_us + bar.length_us))
            for other in bars
            if other.stream != bar.stream
        )
        at = bar.start_us
        for start, end in spans:
            if end > max(start, at):
                shared += end - max(start, at)
                at = end
    return shared / copies


def _draw(bars: list[Bar], path: Path, device: Device, busy: float) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "aikoryu"
    import matplotlib.pyplot as plt
    import torch

    figure, axes = plt.subplots(figsize=(9, 2.8), layout="constrained")
    streams = sorted({bar.stream for bar in bars})
    for kind, colour in COLOURS.items():
        for row, stream in enumerate(streams):
            spans = [(bar.start_us, bar.length_us) for bar in bars if bar.stream == stream and bar.kind == kind]
            axes.broken_barh(spans, (row - 0.36, 0.72), color=colour, label=kind if row == 0 else None)
    axes.set_yticks(range(len(streams)), [f"stream {row + 1}" for row in range(len(streams))])
    axes.invert_yaxis()
    axes.set_xlim(0, SHOWN_US)
    axes.set_xlabel("µs")
    axes.set_title(
        f"matrix.matmul, {ROWS} pairs of {SIDE}×{SIDE} f4 a batch, {torch.cuda.get_device_name(device.place)}: "
        f"{busy:.0%} of copying runs beside other work",
        fontsize=9,
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3, frameon=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
