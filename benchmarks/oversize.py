"""A product larger than the memory that residents may take on the device: whether it ends, how fast, in what room."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aikoryu.bus.columns import Field
from aikoryu.gpu.residents import ResidentsSpec
from benchmarks import record
from benchmarks.copies import Copies
from benchmarks.engine_feed import EngineFeed, feeding
from benchmarks.gpu_watch import Watch, watching
from benchmarks.ours import NAME
from benchmarks.record import Samples
from benchmarks.stopwatch import seconds_each

SHAPE, IN_MEMORY, PINNED = "oversize", "torch, all in memory", "copies alone"
FLOOR = "what binds"
OWNER = "benchmark"
TIMES_THE_BUDGET = 4
RUN_BYTES = 64 << 20
LOOK_S = 0.02
CHECKED = 16
COPIED_PART = 8  # the copies alone are timed with an eighth of the bytes, which is long enough
TOLERANCE = 1e-5


def about(side: int) -> dict[str, Any]:
    """What the shape is; operands and product together are four times the budget."""
    title = f"one product of {side:,}² f4 in a quarter of its memory"
    return {"title": title, "side": side, "budget_bytes": 3 * 4 * side * side // TIMES_THE_BUDGET}


async def measure(device: str, side: int, rounds: int, least_s: float, samples: Samples) -> None:
    """Multiply two matrices and keep the product.

    Args:
        device: `cpu` or `cuda`.
        side: rows and columns of each.
        rounds: how often.
        least_s: how long a baseline is repeated, s.
        samples: where the rounds are added.

    Raises:
        RuntimeError: it did not run.
    """
    import torch

    size, budget = 4 * side * side, about(side)["budget_bytes"]
    draw = np.random.default_rng()
    a, b = (draw.standard_normal((side, side), dtype=np.float32) for _ in range(2))
    with tempfile.TemporaryDirectory(prefix="bench-", dir=_folder(4 * size)) as folder:
        residents = ResidentsSpec(directory=folder, device_bytes=budget)
        async with feeding(device, RUN_BYTES + (1 << 20), streams=1, slots=1, residents=residents) as feed:
            product = _Product(feed, a, b)
            await product.put()
            with watching(device, LOOK_S) as watch:
                await product.run()
            copies = Copies(device, 2 * size // COPIED_PART, size // COPIED_PART)
            there = [torch.from_numpy(x).to(device) for x in (a, b)]
            for _ in range(rounds):
                start = time.perf_counter()
                await product.run()
                seconds = time.perf_counter() - start
                wrong = await product.wrong()
                rates = {
                    IN_MEMORY: 1 / seconds_each(lambda: torch.mm(*there), device, least_s),
                    PINNED: 1 / (copies.seconds_each(least_s) * COPIED_PART),
                }
                rates |= {NAME: 1 / seconds, FLOOR: min(rates.values())}
                for name, rate in rates.items():
                    figures = {"rows_per_s": round(rate, 4), "tflops": round(rate * 2 * side**3 / 1e12, 4)}
                    if name == NAME and watch.figures:
                        figures["peak_of_budget"] = round(_grown_bytes(watch) / budget, 4)
                    sample = record.sample(wrong if name == NAME else 0, **figures)
                    samples.setdefault(SHAPE, {}).setdefault(name, []).append(sample)


def _folder(size: int) -> str | None:
    """Memory for the residents' files where it holds so many bytes, as an operator would set it; None: the default."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > 2 * size else None


def _grown_bytes(watch: Watch) -> float:
    """What the first product, in an engine that had computed nothing, took of the device beyond what it had."""
    return watch.figures["memory_used_bytes"] - watch.figures["memory_before_bytes"]


class _Product:
    """The product of two residents, kept beside them."""

    def __init__(self, feed: EngineFeed, a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
        self._feed = feed
        self._operands = {"a": a, "b": b}
        self._group = secrets.token_hex(4)
        self._version = 0

    async def put(self) -> None:
        """Leave both operands with the engine, in runs of elements."""
        for name, values in self._operands.items():
            flat = values.reshape(-1)
            step = RUN_BYTES // values.itemsize
            for start in range(0, flat.size, step):
                run = flat[start : start + step]
                columns: dict[str, Any] = {"key": [self._key(name)], "owner": [OWNER]}
                columns["version"] = (Field("u8"), np.array([1], np.uint64))
                columns["start"] = (Field("i8"), np.array([start], np.int64))
                columns["x"] = (Field("f4", (run.size,)), run[None])
                await self._feed.run(self._feed.lay(0, "matrix.put", columns, {"shape": values.shape}))

    async def run(self) -> None:
        """Multiply; the product takes the place of the last one."""
        self._version += 1
        shape = self._operands["a"].shape
        parameters = {
            "expression": "a @ b",
            "handles": {name: {"key": self._key(name), "t": "f4", "s": shape} for name in "ab"},
            "keep": {"key": self._key("c"), "owner": OWNER, "version": self._version},
        }
        await self._feed.run(self._feed.lay(0, "matrix.eval", {}, parameters))

    async def wrong(self) -> int:
        """Of some elements of the kept product, those that differ from float64."""
        a, b = self._operands["a"], self._operands["b"]
        side, wrong = len(a), 0
        scale = np.sqrt(side)
        for place in np.random.default_rng().integers(0, side * side, CHECKED).tolist():
            columns: dict[str, Any] = {"key": [self._key("c")]}
            columns["start"] = (Field("i8"), np.array([place], np.int64))
            job = self._feed.lay(1, "matrix.get", columns, {"t": "f4", "s": (1,)})
            found = float(self._feed.answer(job, await self._feed.run(job))[0, 0])
            row, column = divmod(place, side)
            wrong += abs(found - float(a[row].astype(np.float64) @ b[:, column])) > TOLERANCE * scale * 10
        return int(wrong)

    def _key(self, name: str) -> str:
        return f"{self._group}.{name}"
