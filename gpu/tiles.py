"""Products of matrices that do not fit on the device: tile by tile, copies in both directions beside the products.

`plan` chooses the tiles that move the fewest bytes within a budget, and is pure. `multiply` carries them out: while one
tile's product is computed the next one's operands are on their way to the device, and the last one's result is on its
way back. The host's side may be mapped files: pieces go through page-locked memory that is used again and again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bus.columns import FIXED, Array
from ..bus.errors import TooLarge
from .device import Device
from .ops.matrix.precision import is_half, products
from .slab import ALIGN, align

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STREAMED_BYTES = 16 << 20  # of a tile that is moved again and again: smaller ones cost more to start than to move
LEAST_SIDE = 64  # of a streamed tile, where there is room: narrower ones keep no processor busy
MOST_SLACK_BYTES = 1 << 20  # torch's allocator may give that much more than it is asked for
COPYING_THREADS = 8  # on the host, between mapped files and page-locked memory
STAGING_BYTES = 32 << 20  # of each of the two pieces of page-locked memory a direction


@dataclass(frozen=True)
class Tiling:
    """How a product (m, k) @ (k, n) is cut.

    Attributes:
        m, k, n: of the product.
        rows, inner, columns: of a tile; those at the ends may be smaller.
        by_rows: a band of rows of the answer is finished before the next, else a band of columns.
    """

    m: int
    k: int
    n: int
    rows: int
    inner: int
    columns: int
    by_rows: bool

    @property
    def counts(self) -> tuple[int, int, int]:
        """Tiles along m, k and n."""
        return -(-self.m // self.rows), -(-self.k // self.inner), -(-self.n // self.columns)

    @property
    def buffers(self) -> tuple[int, int, int]:
        """Tiles of a, of b and of the answer that are on the device at once: two of what changes with each step."""
        i, p, j = self.counts
        a = 1 if p == 1 and (i == 1 or (self.by_rows and j > 1)) else 2
        b = 1 if p == 1 and (j == 1 or (not self.by_rows and i > 1)) else 2
        return a, b, 1 if i * j == 1 else 2

    def device_bytes(self, itemsize: int) -> int:
        """What the tiles take on the device."""
        a, b, c = self.buffers
        return itemsize * (a * self.rows * self.inner + b * self.inner * self.columns + c * self.rows * self.columns)

    def moved_bytes(self, itemsize: int) -> int:
        """What is copied to the device and back."""
        i, p, j = self.counts
        a = 1 if p == 1 and (self.by_rows or i == 1) else j
        b = 1 if p == 1 and (not self.by_rows or j == 1) else i
        return itemsize * (a * self.m * self.k + b * self.k * self.n + self.m * self.n)

    def steps(self) -> Iterator[tuple[slice, slice, slice]]:
        """The tiles in the order in which they are multiplied: along m, k and n."""
        rows, inner, columns = (
            [slice(start, min(start + size, end)) for start in range(0, end, size)]
            for end, size in ((self.m, self.rows), (self.k, self.inner), (self.n, self.columns))
        )
        pairs = ((i, j) for i in rows for j in columns) if self.by_rows else ((i, j) for j in columns for i in rows)
        for i, j in pairs:
            for p in inner:
                yield i, p, j


def plan(m: int, k: int, n: int, itemsize: int, budget_bytes: int, *, split_inner: bool = True) -> Tiling:
    """The tiles that move the fewest bytes.

    One of the three matrices stands still: a band of a, as many rows as fit, while b streams by; a band of b, while a
    does; or a tile of the answer, while both do, which is better where k is more than twice the root of the budget.

    Args:
        m, k, n: of the product (m, k) @ (k, n), at least 1.
        itemsize: of a number, bytes.
        budget_bytes: most bytes on the device.
        split_inner: whether sums may be made in parts, each rounded to the dtype.

    Raises:
        TooLarge: not even the smallest tiles fit.
    """
    room = budget_bytes // itemsize
    found = [Tiling(m, k, n, rows, k, columns, True) for columns, rows in _bands(n, m, k, itemsize, room)]
    found += [Tiling(m, k, n, rows, k, columns, False) for rows, columns in _bands(m, n, k, itemsize, room)]
    if split_inner:
        found += _tiles_of_the_answer(m, k, n, room)
    fitting = [tiling for tiling in found if tiling.device_bytes(itemsize) <= budget_bytes]
    if not fitting:
        raise TooLarge(
            f"a product of {m} x {k} by {k} x {n} needs more than {budget_bytes} bytes on the device even in tiles: "
            "raise residents.device_bytes"
        )
    return min(fitting, key=lambda tiling: (tiling.moved_bytes(itemsize), math.prod(tiling.counts)))


def _bands(streamed: int, standing: int, k: int, itemsize: int, room: int) -> Iterator[tuple[int, int]]:
    """Widths of a streamed tile, and of the band that stands still beside two of them and two of the answer."""
    for width in _halved(min(streamed, max(4 * LEAST_SIDE, STREAMED_BYTES // (k * itemsize)))):
        band = min(standing, (room - 2 * k * width) // (k + 2 * width))
        if band > 0:
            yield width, _even(standing, band)
            if width <= LEAST_SIDE:
                return


def _tiles_of_the_answer(m: int, k: int, n: int, room: int) -> Iterator[Tiling]:
    """Tiles of the answer that stand still while two of a and two of b come by."""
    bands = {*range(1, min(m, 256) + 1), *(min(m, 1 << power) for power in range(9, m.bit_length() + 1))}
    for inner in _halved(min(k, 4 * LEAST_SIDE)):
        found = False
        for rows in {-(-m // count) for count in bands}:
            columns = min(n, (room - 2 * rows * inner) // (2 * inner + 2 * rows))
            if columns > 0:
                found = True
                yield Tiling(m, k, n, rows, inner, _even(n, columns), True)
        if found and inner <= LEAST_SIDE:
            return


def _halved(size: int) -> Iterator[int]:
    while size:
        yield size
        size //= 2


def _even(whole: int, part: int) -> int:
    """The part made as small as it may be without more of them being needed."""
    return -(-whole // -(-whole // part))


def multiply(
    device: Device,
    a: Array,
    b: Array,
    out: Array,
    dtype: str,
    budget_bytes: int,
    between: Callable[[], object] = lambda: None,
) -> Tiling:
    """Multiply matrices on the host with the device, into memory of the host.

    Args:
        device: where to multiply, inside of `device.stream()`.
        a: (m, k).
        b: (k, n).
        out: (m, n), written.
        dtype: of all three, the wire name; floats.
        budget_bytes: most bytes of tiles on the device; cuBLAS keeps a workspace of its own beside them.
        between: called between steps; what it raises ends the product, and `out` is undefined.

    Returns:
        How it was cut.

    Raises:
        TooLarge: the budget has no room for the smallest tiles.
    """

    host = [Device("cpu", device.threads).tensor(array, dtype) for array in (a, b, out)]
    itemsize = FIXED[dtype].itemsize
    (m, k), n = a.shape, b.shape[1]
    if 0 in (m, k, n):
        host[2].zero_()
        return Tiling(m, k, n, max(m, 1), max(k, 1), max(n, 1), True)
    slack = max(6 * ALIGN, min(MOST_SLACK_BYTES, budget_bytes // 8)) if device.is_cuda else 0
    tiling = plan(m, k, n, itemsize, budget_bytes - slack, split_inner=itemsize > 2)
    longest = itemsize * max(tiling.inner, tiling.columns)
    copies = _CudaCopies(device, max(STAGING_BYTES, longest)) if device.is_cuda else _Copies()
    try:
        _run(tiling, host, _buffers(tiling, host[0].dtype, device), copies, between)
    finally:
        copies.finish()
    return tiling


def _buffers(tiling: Tiling, dtype: torch.dtype, device: Device) -> list[list[_Buffer]]:
    """Room for the tiles of a, of b and of the answer, all of one allocation."""
    import torch

    sizes = (tiling.rows * tiling.inner, tiling.inner * tiling.columns, tiling.rows * tiling.columns)
    aligned = [align(size * dtype.itemsize) // dtype.itemsize for size in sizes]
    total = sum(size * count for size, count in zip(aligned, tiling.buffers, strict=True))
    memory = torch.empty(total, dtype=dtype, device=device.place)
    found: list[list[_Buffer]] = []
    start = 0
    for size, count in zip(aligned, tiling.buffers, strict=True):
        found.append([_Buffer(memory[start + number * size : start + (number + 1) * size]) for number in range(count)])
        start += size * count
    return found


@dataclass(eq=False)
class _Buffer:
    """Room for a tile on the device.

    Attributes:
        memory: flat.
        tile: the part of it that holds a tile now.
        of: which tile that is.
        filled, emptied: events of CUDA after which it may be read, and written again.
    """

    memory: Tensor
    tile: Any = None
    of: object = None
    filled: Any = None
    emptied: Any = None

    def shaped(self, like: Tensor) -> Tensor:
        """Its memory as a tile of this shape."""
        self.tile = self.memory[: like.numel()].view(like.shape)
        found: Tensor = self.tile
        return found


def _run(
    tiling: Tiling,
    host: list[Tensor],
    buffers: list[list[_Buffer]],
    copies: _Copies,
    between: Callable[[], object],
) -> None:
    a, b, out = host
    of_a, of_b, of_out = buffers
    done: tuple[Tensor, _Buffer] | None = None
    for i, p, j in tiling.steps():
        between()
        left = _moved(of_a, a[i, p], (i, p), copies)
        right = _moved(of_b, b[p, j], (p, j), copies)
        if p.start == 0:
            of_out.append(of_out.pop(0))  # the one used longest ago
        answer = of_out[-1]
        if p.start == 0:
            answer.shaped(out[i, j])
        with copies.computing((left, right), answer):
            _multiply_into(answer.tile, left.tile, right.tile, add=p.start > 0)
        if done is not None:  # only now, so that the host waits for the product before and not for this one
            copies.store(*done)
            done = None
        if p.stop == tiling.k:
            done = (out[i, j], answer)
    if done is not None:
        copies.store(*done)


def _moved(buffers: list[_Buffer], source: Tensor, of: object, copies: _Copies) -> _Buffer:
    """The buffer with a tile, which is moved to the one used longest ago unless it came last."""
    if buffers[-1].of != of:
        buffers.append(buffers.pop(0))
        copies.load(buffers[-1], source)
        buffers[-1].of = of
    return buffers[-1]


def _multiply_into(answer: Tensor, a: Tensor, b: Tensor, *, add: bool) -> None:
    import torch

    with products(a):
        if a.is_cpu and is_half(a):
            answer.copy_(a.float() @ b.float())
        elif add:
            answer.addmm_(a, b)
        else:
            torch.mm(a, b, out=answer)


class _Copies:
    """Copies that have been made when the call returns, where the device is the host."""

    def load(self, buffer: _Buffer, source: Tensor) -> None:
        """Bring a tile to the device."""
        buffer.shaped(source).copy_(source)

    def store(self, target: Tensor, buffer: _Buffer) -> None:
        """Bring a tile of the answer to the host."""
        target.copy_(buffer.tile)

    @contextmanager
    def computing(self, operands: tuple[_Buffer, ...], answer: _Buffer) -> Iterator[None]:
        """Multiply inside, when the tiles are there."""
        yield

    def finish(self) -> None:
        """Return when all is copied."""


@dataclass(eq=False)
class _Stage:
    """Page-locked memory on a copy's way.

    Attributes:
        memory: bytes.
        free: event after which the device does not use it any more.
        rest: where on the host its content still has to go.
    """

    memory: Tensor
    free: Any = None
    rest: Tensor | None = None


class _CudaCopies(_Copies):
    """Copies on streams of their own, one a direction, beside what the current stream computes."""

    def __init__(self, device: Device, staging_bytes: int) -> None:
        import torch

        self._threads = ThreadPoolExecutor(COPYING_THREADS)
        self._current = torch.cuda.current_stream(device.place)
        self._up, self._down = torch.cuda.Stream(device.place), torch.cuda.Stream(device.place)
        self._up.wait_stream(self._current)  # the buffers' memory may have been another's there
        self._rising, self._falling = (
            [_Stage(torch.empty(staging_bytes, dtype=torch.uint8, pin_memory=True)) for _ in range(2)] for _ in range(2)
        )

    def load(self, buffer: _Buffer, source: Tensor) -> None:
        """Enqueue the copy of a tile; only its pieces' way to page-locked memory is waited for."""
        import torch

        tile = buffer.shaped(source)
        if buffer.emptied is not None:
            self._up.wait_event(buffer.emptied)
        for rows in _pieces(source):
            stage = self._next(self._rising)
            piece = _as(stage, source[rows])
            self._copy(piece, source[rows])
            with torch.cuda.stream(self._up):
                tile[rows].copy_(piece, non_blocking=True)
                stage.free = self._up.record_event()
        buffer.filled = self._up.record_event()

    def store(self, target: Tensor, buffer: _Buffer) -> None:
        """Enqueue the copy of a tile of the answer; its pieces reach the target when their memory is needed again."""
        import torch

        self._down.wait_event(buffer.filled)
        for rows in _pieces(target):
            stage = self._next(self._falling)
            piece = _as(stage, target[rows])
            with torch.cuda.stream(self._down):
                piece.copy_(buffer.tile[rows], non_blocking=True)
                stage.free = self._down.record_event()
            stage.rest = target[rows]
        buffer.emptied = self._down.record_event()

    @contextmanager
    def computing(self, operands: tuple[_Buffer, ...], answer: _Buffer) -> Iterator[None]:
        """Enqueue products inside; they wait for the operands' copies, and for the answer's buffer."""
        for buffer in operands:
            self._current.wait_event(buffer.filled)
        if answer.emptied is not None:
            self._current.wait_event(answer.emptied)
        yield
        event = self._current.record_event()
        for buffer in operands:
            buffer.emptied = event
        answer.filled = event

    def finish(self) -> None:
        """Return when the device does nothing for this product any more, and the answer is on the host."""
        for stage in (*self._rising, *self._falling):
            self._settle(stage)
        for stream in (self._up, self._down, self._current):
            stream.synchronize()
        self._threads.shutdown()

    def _next(self, stages: list[_Stage]) -> _Stage:
        """The memory used longest ago, when it is free."""
        stages.append(stages.pop(0))
        self._settle(stages[-1])
        return stages[-1]

    def _settle(self, stage: _Stage) -> None:
        if stage.free is not None:
            stage.free.synchronize()
            stage.free = None
        if stage.rest is not None:
            self._copy(stage.rest, _as(stage, stage.rest))
            stage.rest = None

    def _copy(self, into: Tensor, source: Tensor) -> None:
        """Copy on the host with several threads: one moves a fifth of what the bus to the device takes."""
        rows = -(-len(source) // COPYING_THREADS)
        parts = [slice(start, start + rows) for start in range(0, len(source), rows)]
        to, of = _bytes(into), _bytes(source)
        list(self._threads.map(lambda part: np.copyto(to[part], of[part]), parts))


def _bytes(tensor: Tensor) -> Array:
    """Its memory as NumPy has it, whose copies hold neither the interpreter nor more threads than one."""
    import torch

    array: Array = tensor.view(torch.uint8).numpy()
    return array


def _as(stage: _Stage, like: Tensor) -> Tensor:
    """Page-locked memory as a piece of this type."""
    return stage.memory[: like.nbytes].view(like.dtype).view(like.shape)


def _pieces(tile: Tensor) -> Iterator[slice]:
    """Rows of a tile, as many at a time as page-locked memory holds."""
    rows = max(1, STAGING_BYTES // (tile.shape[1] * tile.itemsize))
    for start in range(0, tile.shape[0], rows):
        yield slice(start, min(start + rows, tile.shape[0]))
