"""A graph's rows on a GPU: a warp a row, through the kernels of `source.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...bus.columns import Array
from ..compiled import compiled
from ..device import DeviceLost
from .source import LONG, LONG_PART, PART, THREADS, kernel_names, source

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .agents import AgentTable
    from .edges import Edges

Launch = Callable[[str, int, Sequence[np.uint64]], None]
"""Enqueues a kernel on the current stream: its name, how many warps it is given, and arguments of 64 bits each.

It raises `DeviceLost` where the driver refuses.
"""
Abilities = tuple[Array, Array] | None
"""(m,) uint64, capabilities, and (m,) float32, loads; None if they stay."""

WARP = 32
WARPS = (
    1 << 12
)  # of a launch whose work is counted on the device: each takes on row after row; an H100 has 4,224 at once
SWEEP = 6  # members of a struct Sweep, of which these are looked at
REACHED, TAKEN, EDGES, RAN, LONGEST = 0, 1, 2, 3, 5
SWEEPS = (4, 8)  # that are enqueued before the host looks: at first, and then
LEAST_ROWS = 1 << 12
ALIGNED = 16  # bytes, of what is loaded at once
SHARE = 4  # of all rows, one in so many can be passed on in a sweep


class Pushed(NamedTuple):
    """What sweeps over some rows have done.

    Attributes:
        pushes: sweeps.
        edges: that all of them went along.
        longest: the length of the longest row of R.
        is_settled: that is no more than ε. If not, going on with all rows costs less; some rows of R may then be 0
            that have not been passed on, which R anew from Z mends.
    """

    pushes: int
    edges: int
    longest: float
    is_settled: bool


class ContextKernels:
    """What the kernels do to the rows of one graph.

    A warp adds up what its row hears, in the order of its edges: on an H100 an edge took 3.5 ns where several warps add
    to one row, and 0.6 ns where one reads. Only rows that hear more than LONG others are added to by several, in any
    order.

    Args:
        table, edges: of the graph.
        alpha: of the graph.
        launch: how, those for rows of its dimension.
    """

    def __init__(self, table: AgentTable, edges: Edges, alpha: float, launch: Launch) -> None:
        self._table = table
        self._edges = edges
        self._alpha = bits(alpha)
        self._launch = launch
        self._room = _Room.of(0, 0, 0, table.norm.device)
        self._ahead: Tensor | None = None

    @classmethod
    def of(cls, table: AgentTable, edges: Edges, alpha: float) -> ContextKernels | None:
        """The kernels of a GPU, compiled; None where there is no GPU or no CuPy: torch does the same."""
        launch = _compiled(table.own.shape[1]) if table.norm.is_cuda else None
        return None if launch is None else cls(table, edges, alpha, launch)

    def say(self, slots: Array, vectors: Array | Tensor, said: Abilities, *, is_there: bool) -> None:
        """Let X0 be these vectors, and R what follows.

        Args:
            slots: (m,) int64, each once.
            vectors: (m, d) bits of bf16, an array, or bf16 on the device.
            said: what else they say.
            is_there: whether they are there now.
        """
        table = self._table
        columns = {"slots": slots}
        if isinstance(vectors, np.ndarray):
            columns["vectors"] = vectors
        if said is not None:
            columns["capabilities"], columns["load"] = said
        packed, at = self._sent(columns)
        given = at["vectors"] if isinstance(vectors, np.ndarray) else vectors
        self._run(
            *("say", min(len(slots), WARPS), at["slots"], len(slots), given, int(is_there)),
            *(at.get("capabilities"), at.get("load"), self._alpha, table.own, table.residual, table.norm),
            *(table.is_there, table.capabilities, table.load),
        )
        del packed  # what comes next in the stream may have its memory

    def full_step(self, used: int, *, again: bool) -> None:
        """Z + R for Z, and R anew from that; see `propagate.full_step`.

        What the next step begins with is written beside R: to add it up then would move three times as much.

        Args:
            used: rows that are somebody's.
            again: as there.
        """
        import torch

        table = self._table
        if again and self._ahead is not None:
            table.blended, self._ahead = self._ahead, table.blended
        else:
            table.blended[:used] += table.residual[:used]
        if self._ahead is None or self._ahead.shape != table.blended.shape:
            self._ahead = torch.zeros_like(table.blended)
        table.stirred[:used] = True
        self.refresh(None, used, self._ahead)

    def rest(self) -> None:
        """Give back what only steps that follow one another need."""
        self._ahead = None

    def refresh(self, slots: Tensor | None, used: int, ahead: Tensor | None = None) -> None:
        """Compute R anew from Z, and its lengths.

        Args:
            slots: (m,) int64, each once; all by default.
            used: how many all are.
            ahead: as Z, gets Z + R.
        """
        import torch

        table, heard = self._table, self._edges.heard
        rows = used if slots is None else len(slots)
        if not rows:
            return
        # Rows with many edges are added up in parts, by many warps.
        place = table.norm.device
        most = heard.total // LONG_PART + heard.total // LONG + 1
        long_rows, long_parts = torch.empty((2, most), dtype=torch.int64, device=place)
        lengths = torch.zeros(2, dtype=torch.int64, device=place)
        graph = (heard.start, heard.count, heard.other, heard.columns["weight"], self._edges.scale, self._alpha)
        z, r = table.blended, table.residual
        self._run(
            "refresh", rows, slots, rows, table.own, z, r, table.norm, *graph, long_rows, long_parts, lengths, ahead
        )
        if heard.total > LONG:
            self._run("refresh_parts", min(most, WARPS), z, r, *graph, long_parts, lengths, ahead)
            self._run("measure", min(most, WARPS), long_rows, lengths, r, table.norm)

    def push(self, used: int, epsilon: float, limit: int, most: int) -> Pushed:
        """Pass on rows of R that are longer than ε, sweep by sweep; see `propagate.push`.

        Args:
            used: rows that are somebody's, above 0.
            epsilon, limit, most: as there.
        """
        import torch

        table, edges, hearers = self._table, self._edges, self._edges.hearers
        over = bits(epsilon, below=True)
        room = self._room = self._room.grown(len(table), hearers.total, table.own.shape[1])
        sweeps = torch.zeros(SWEEP * (most + 1), dtype=torch.int64, device=table.norm.device)
        at = sweeps.data_ptr()
        reached, heard = (room.reached, room.is_reached), edges.heard
        taking = words(
            *(over, limit, *reached, table.residual, table.blended, table.norm, table.stirred, hearers.count),
            *(room.frontier, room.place, room.passed, room.rows, room.parts, len(room.parts)),
        )
        passing = words(
            *(limit, *reached, table.residual, hearers.start, hearers.count, hearers.other),
            *(hearers.columns["weight"], heard.count, edges.scale, self._alpha),
            *(room.frontier, room.passed, room.rows, room.parts),
        )
        pulling = words(
            *(room.reached, table.residual, table.norm, heard.start, heard.count, heard.other),
            *(heard.columns["weight"], edges.scale, self._alpha, room.frontier, room.place, room.passed),
        )
        self._run(
            "select_rows", min(-(-used // WARP), WARPS), table.norm, used, over, hearers.count, room.reached, sweeps
        )
        self._launch("take", WARPS, (np.uint64(at), np.uint64(1), *taking))
        begin = 0
        while True:
            end = min(begin + SWEEPS[begin > 0], most)
            for number in range(begin, end):
                here = np.uint64(at + number * SWEEP * 8)
                self._launch("pass_on", WARPS, (here, *passing))
                self._launch("pull", WARPS, (here, *pulling))
                self._launch("take", WARPS, (np.uint64(at + (number + 1) * SWEEP * 8), np.uint64(0), *taking))
            self._launch("longest", min(-(-used // WARP), WARPS), words(table.norm, used, at + end * SWEEP * 8))
            found = sweeps[: SWEEP * (end + 1)].view(-1, SWEEP).tolist()
            pushes = next(number for number, one in enumerate(found) if not one[RAN])
            if pushes < end or end == most or not found[end][TAKEN]:
                # Of the first only, what was listed is not taken where it costs too much.
                left = found[0][REACHED] if not pushes else found[pushes][TAKEN]
                longest = np.uint32(found[end][LONGEST]).view(np.float32)
                return Pushed(pushes, sum(one[EDGES] for one in found[:pushes]), float(longest), not left)
            begin = end

    def due(self, used: int, now_ms: int) -> tuple[Array, Tensor, Array]:
        """Whose Z is further than its threshold from what it was told, and whose interval is over; see `notify.due`.

        Args:
            used: rows that are somebody's.
            now_ms: the time.

        Returns:
            As `Notices` has it: slots in ascending order, vectors, and how far each is.
        """
        import torch

        table, d = self._table, self._table.own.shape[1]
        room = self._room = self._room.grown(len(table), self._edges.hearers.total, d)
        length = torch.zeros(1, dtype=torch.int64, device=table.norm.device)
        self._run(
            *("due", min(-(-used // WARP), WARPS), used, now_ms, table.blended, table.sent, table.stirred),
            *(table.threshold, table.interval_ms, table.sent_ms, room.far, room.moved, length),
        )
        far = room.far[: int(length)].sort().values
        many = len(far)
        vectors = torch.empty((many, d), dtype=table.sent.dtype, device=far.device)
        told = torch.empty(12 * many, dtype=torch.uint8, device=far.device)  # slots, and after them how far
        self._run(
            *("tell", min(many, WARPS), far, many, now_ms, table.blended, room.moved, table.sent, table.sent_ms),
            *(told.data_ptr(), told.data_ptr() + 8 * many, vectors),
        )
        there = told.cpu().numpy()
        return there[: 8 * many].view(np.int64), vectors, there[8 * many :].view(np.float32)

    def _sent(self, columns: Mapping[str, Array]) -> tuple[Tensor, dict[str, int]]:
        """Columns on the device, in one copy, and where each of them is: what is sent apart is waited for apart."""
        import torch

        ends = list(accumulate((_aligned(column.nbytes) for column in columns.values()), initial=0))
        packed = np.empty(ends[-1], np.uint8)
        for begin, column in zip(ends, columns.values(), strict=False):
            packed[begin : begin + column.nbytes] = np.ascontiguousarray(column).reshape(-1).view(np.uint8)
        there = torch.from_numpy(packed).to(self._table.norm.device)
        return there, {name: there.data_ptr() + begin for begin, name in zip(ends, columns, strict=False)}

    def _run(self, name: str, warps: int, *arguments: Tensor | np.uint64 | int | None) -> None:
        if warps:
            self._launch(name, warps, words(*arguments))


class _Room(NamedTuple):
    """What sweeps work with.

    Attributes:
        reached: (slots,) int32, rows whose R has changed.
        is_reached: (slots,) int32, which those are; all 0 between calls.
        frontier: (rows,) int32, rows that are passed on.
        place: (slots,) int32, where each of those is among them.
        passed: (rows, d) float32, what they have.
        parts: int64, their parts.
        far: (slots,) int64, rows that are to be told.
        moved: (slots,) float32, how far each of those has moved, by row.
    """

    reached: Tensor
    is_reached: Tensor
    frontier: Tensor
    place: Tensor
    passed: Tensor
    parts: Tensor
    far: Tensor
    moved: Tensor

    @classmethod
    def of(cls, slots: int, edges: int, dimension: int, place: torch.device) -> _Room:
        import torch

        rows = min(slots, max(LEAST_ROWS, slots // SHARE))
        return cls(
            reached=torch.empty(slots, dtype=torch.int32, device=place),
            is_reached=torch.zeros(slots, dtype=torch.int32, device=place),
            frontier=torch.empty(rows, dtype=torch.int32, device=place),
            place=torch.zeros(slots, dtype=torch.int32, device=place),
            passed=torch.empty((rows, dimension), dtype=torch.float32, device=place),
            parts=torch.empty(rows + edges // PART, dtype=torch.int64, device=place),
            far=torch.empty(slots, dtype=torch.int64, device=place),
            moved=torch.empty(slots, dtype=torch.float32, device=place),
        )

    @property
    def rows(self) -> int:
        """That can be passed on in a sweep."""
        return len(self.frontier)

    def grown(self, slots: int, edges: int, dimension: int) -> _Room:
        """Room for so many slots and edges; the same where there is."""
        if slots <= len(self.reached) and self.rows + edges // PART <= len(self.parts):
            return self
        return _Room.of(slots, edges + edges // 4, dimension, self.reached.device)


def _aligned(size: int) -> int:
    """Bytes up to where the next column may begin."""
    return -(-size // ALIGNED) * ALIGNED


def bits(number: float, *, below: bool = False) -> np.uint64:
    """A number as the bits of float32.

    Args:
        number: at least 0.
        below: where there is no such float32, the next smaller one, not the nearest.
    """
    return np.uint64(np.float32(no_more(number) if below else number).view(np.uint32))


def no_more(number: float) -> float:
    """The largest number of float32 that is no more than one, which is at least 0."""
    near = np.float32(number)
    return float(np.nextafter(near, np.float32(0)) if float(near) > number else near)


def words(*arguments: Tensor | np.uint64 | int | None) -> tuple[np.uint64, ...]:
    """Arguments of a kernel: tensors by where they lie, None as null, negative numbers as int64."""
    return tuple(map(_word, arguments))


def _word(argument: Tensor | np.uint64 | int | None) -> np.uint64:
    if isinstance(argument, np.uint64):
        return argument
    if isinstance(argument, int):
        return np.uint64(argument & 0xFFFF_FFFF_FFFF_FFFF)
    return np.uint64(0 if argument is None else argument.data_ptr())


@cache
def _compiled(dimension: int) -> Launch | None:
    """The kernels for rows of so many numbers, compiled for the GPU at hand.

    None without CuPy, or without the compiler that it loads.
    """
    functions = compiled(source(dimension), kernel_names(), "context graphs run through torch")
    if functions is None:
        return None

    def launch(name: str, warps: int, arguments: Sequence[np.uint64]) -> None:
        try:
            functions[name]((-(-warps * WARP // THREADS),), (THREADS,), tuple(arguments))
        except RuntimeError as error:  # CuPy's own: the driver refuses, most often for what ran before
            raise DeviceLost(f"{name} cannot be launched: {error}") from error

    return launch
