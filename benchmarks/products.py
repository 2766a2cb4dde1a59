"""Batches of matrix products: in the engine with operands that stay, with both transfers, and in plain torch."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aikoryu.bus.columns import Field
from benchmarks import record
from benchmarks.copies import Copies
from benchmarks.engine_feed import EngineFeed
from benchmarks.ours import NAME
from benchmarks.record import Samples
from benchmarks.stopwatch import seconds_each, synchronize

TRANSFERRED, BARE, CPU, PINNED = f"{NAME} with transfers", "torch.bmm", "torch on all cores", "copies alone"
OWNER = "benchmark"
CHAIN = 16  # products of one expression; of the last, which stays on the device, only the norm is answered
CHECKED = 3
ANSWER_BYTES = 4096
TOLERANCE = {"f4": 1e-5, "bf16": 1e-2}

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """So many products of two square matrices."""

    rows: int
    side: int
    dtype: str

    @property
    def name(self) -> str:
        """Its name in the record."""
        return f"{self.dtype}-{self.side}"

    @property
    def field(self) -> Field:
        """The type of one operand."""
        return Field(self.dtype, (self.side, self.side))

    @property
    def operand_bytes(self) -> int:
        """Of one of the two operands of all products, or of all results."""
        return self.rows * self.field.row_bytes

    def about(self) -> dict[str, Any]:
        """What it is, for people and for the plot."""
        title = f"{self.rows:,} products of {self.side:,}² {self.dtype}"
        return {"title": title, "rows": self.rows, "side": self.side, "dtype": self.dtype}

    def figures(self, products_per_s: float) -> dict[str, float]:
        """A rate as it is recorded."""
        return {
            "rows_per_s": round(products_per_s, 3),
            "tflops": round(products_per_s * 2 * self.side**3 / 1e12, 4),
        }


def cases(device: str, quick: bool) -> list[Case]:
    """The cases for a GPU, or small ones for a CPU."""
    of = ((10_000, 64), (256, 256), (16, 1024), (1, 4096)) if device != "cpu" else ((200, 64), (4, 256), (1, 512))
    found = [Case(rows, side, dtype) for dtype in ("f4", "bf16") for rows, side in of]
    return [case for case in found if not quick or case.side in (64, 1024)]


class Operands:
    """Fresh random operands of a case, of a size that keeps products of products of size one."""

    def __init__(self, case: Case) -> None:
        import torch

        shape, scale = (case.rows, case.side, case.side), 1 / math.sqrt(case.side)
        kind = torch.float32 if case.dtype == "f4" else torch.bfloat16
        self.a, self.b = (torch.randn(shape, dtype=torch.float32).mul_(scale).to(kind) for _ in range(2))

    def on_wire(self) -> tuple[Array, Array]:
        """Both as the bus has them: of bf16 the bits."""
        import torch

        a, b = (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x for x in (self.a, self.b))
        return a.numpy(), b.numpy()


class Products:
    """One case, ready for its rounds.

    Attributes:
        skipped: what could not run, with the reason.
    """

    def __init__(self, case: Case, feed: EngineFeed, device: str, least_s: float) -> None:
        self.case = case
        self.skipped: dict[str, str] = {}
        self._feed = feed
        self._device = device
        self._least_s = least_s
        self._operands = Operands(case)
        self._place = (self._operands.a.to(device), self._operands.b.to(device))
        self._copies = Copies(device, 2 * case.operand_bytes, case.operand_bytes)
        self._resident: list[Any] = []

    async def prepare(self) -> None:
        """Lay the operands into slabs, leave them with the engine, and check both kinds of answers."""
        case, feed = self.case, self._feed
        a, b = self._operands.on_wire()
        try:
            self._resident = await self._put(a, b)
        except RuntimeError as error:
            self.skipped[NAME] = str(error)
        # Last: the slabs are used by the puts as well.
        columns = {"a": (case.field, a), "b": (case.field, b)}
        self._jobs = [feed.lay(slab, "matrix.matmul", columns) for slab in range(feed.slabs - 1)]
        self._wrong = {TRANSFERRED: await self._wrong_products(), NAME: 0}
        if self._resident:
            self._wrong[NAME] = await self._wrong_norms()

    async def round(self, samples: Samples) -> None:
        """Add one round to the samples."""
        import torch

        case, rates = self.case, dict[str, float]()
        if self._resident:
            rates[NAME] = case.rows * CHAIN * await self._feed.rate(self._resident, self._least_s)
        rates[TRANSFERRED] = await self._feed.rate(self._jobs, self._least_s)
        rates[BARE] = case.rows / seconds_each(self._chain(*self._place), self._device, self._least_s) * CHAIN
        rates[PINNED] = case.rows / self._copies.seconds_each(self._least_s)
        a, b = self._operands.a, self._operands.b
        rates[CPU] = case.rows / seconds_each(lambda: torch.bmm(a, b), "cpu", self._least_s / 2)
        for name, rate in rates.items():
            sample = record.sample(self._wrong.get(name, 0), **case.figures(rate))
            samples.setdefault(case.name, {}).setdefault(name, []).append(sample)

    def release(self) -> None:
        """Let the device's memory go."""
        del self._place, self._copies, self._operands
        if self._device != "cpu":
            import torch

            synchronize(self._device)
            torch.cuda.empty_cache()

    async def free(self) -> None:
        """Drop what was left with the engine."""
        if self._resident:
            for name in "ab":
                await self._feed.run(self._feed.lay(0, "matrix.free", {"key": [self._key(name)], "owner": [OWNER]}))

    def _chain(self, a: Any, b: Any) -> Callable[[], Any]:
        import torch

        def work() -> Any:
            product = a
            for _ in range(CHAIN):
                product = torch.bmm(product, b)
            return product

        return work

    async def _put(self, a: Array, b: Array) -> list[Any]:
        """Leave both operands with the engine; the jobs whose operands they are."""
        case, feed = self.case, self._feed
        shape = (case.rows, case.side, case.side)
        self._group = secrets.token_hex(4)
        for name, values in (("a", a), ("b", b)):
            columns: dict[str, Any] = {"key": [self._key(name)], "owner": [OWNER]}
            columns["version"] = (Field("u8"), np.array([1], np.uint64))
            columns["start"] = (Field("i8"), np.array([0], np.int64))
            columns["x"] = (Field(case.dtype, shape), values[None])
            await feed.run(feed.lay(0, "matrix.put", columns))
        jobs = []
        for slab in range(feed.slabs - 1):
            # Each job writes it in other words, or they would be one batch with one answer.
            handles = {f"{name}{slab}": {"key": self._key(name), "t": case.dtype, "s": shape} for name in ("a", "b")}
            expression = f"norm(a{slab}{f' @ b{slab}' * CHAIN})"
            job = feed.lay(slab, "matrix.eval", {}, {"expression": expression, "handles": handles})
            job.free = feed.slab_bytes - ANSWER_BYTES  # behind the operands that other jobs have in the slab
            jobs.append(job)
        await feed.run(jobs[0])
        return jobs

    def _key(self, name: str) -> str:
        return f"{self._group}.{name}"

    async def _wrong_products(self) -> int:
        """Of some products of a batch with transfers, those that differ from float64."""
        done = await self._feed.run(self._jobs[0])
        answer = self._feed.answer(self._jobs[0], done)
        return sum(not self._agrees(answer, row) for row in np.linspace(0, self.case.rows - 1, CHECKED, dtype=int))

    def _agrees(self, answer: Array, row: int) -> bool:
        import torch

        expected = self._operands.a[row].double() @ self._operands.b[row].double()
        found = torch.from_numpy(answer[row].copy())
        found = (found.view(torch.bfloat16) if self.case.dtype == "bf16" else found).double()
        return float((found - expected).norm() / expected.norm()) < TOLERANCE[self.case.dtype]

    async def _wrong_norms(self) -> int:
        """Whether the expression's answer is another than plain torch's, 1 or 0."""
        import torch

        expected = float(self._chain(*self._place)().float().norm())
        done = await self._feed.run(self._resident[0])
        raw = torch.from_numpy(self._feed.answer(self._resident[0], done).copy())
        found = float(raw.view(torch.bfloat16)[0] if self.case.dtype == "bf16" else raw[0])
        return int(not abs(found - expected) <= 2e-2 * expected)
