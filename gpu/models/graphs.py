"""Encoders on CUDA: rows packed end to end, through graphs captured when the model is loaded.

An encoder of MiniLM's size launches a hundred kernels of microseconds each; launched one by one, they take 4.2 ms at
any batch up to 1,024 rows (H100), and a graph at 64 rows 0.75 ms. Rows lie end to end, so a graph serves rows of any
lengths, the only padding is what is left of its room, and its size has one dimension.
"""

from __future__ import annotations

import math
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, cycle
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from ...bus.columns import Array
from .bert import Bert
from .pooling import packed_mean


class Size(NamedTuple):
    """What goes through one graph at most."""

    tokens: int
    rows: int


# A row for each 16 tokens: attention starts a block a row whether it is used or not, and texts are rarely shorter.
SIZES = tuple(
    Size(tokens, tokens // 16) for tokens in (256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
)

# Batches on the device at once. The next one waits on the device, not on the host, so more stream threads may run.
LANES = 3

# Groups of a batch that are on their way at once: one is packed and copied while another is computed.
_SLOTS = 2

Checkpoint = Callable[[slice], bool]
"""Whether these rows of the batch still interest anybody."""


class Graphs:
    """An encoder with mean pooling, ready to run several batches at once."""

    def __init__(self, bert: Bert, dimension: int, longest: int, device: torch.device) -> None:
        """Capture the graphs of every lane.

        Args:
            bert: on `device`, in float16 or bfloat16, heads a multiple of 8 wide: what flash attention takes.
            dimension: numbers of a vector.
            longest: most tokens of a row, at most those of the largest size.
            device: a CUDA device of compute capability 8.0 or more.
        """
        self._bert = bert  # graphs know the weights by their addresses alone
        self._dimension = dimension
        self._device = device
        self._free: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        torch.cuda.current_stream(device).synchronize()  # the weights may be on their way still
        for _ in range(LANES):
            self._free.put(_Lane(bert, dimension, longest, device))

    def __call__(self, tokens: Sequence[Sequence[int]], checkpoint: Checkpoint) -> Tensor:
        """Embed rows.

        Args:
            tokens: token numbers of each row, at least one and at most the `longest`.
            checkpoint: asked before each group of rows; false drops the group.

        Returns:
            (rows, d) float32 unit vectors on the current stream, 0 for rows that were dropped.
        """
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        # The allocator keeps a block for this stream; the caller reads it on the same, after the lane is given back.
        vectors = torch.zeros(len(tokens), self._dimension, device=self._device)
        with self._lane() as lane:
            for rows in groups(lengths, SIZES):
                if checkpoint(rows):
                    count = int(lengths[rows].sum())
                    ids = np.fromiter(chain.from_iterable(tokens[rows]), np.int32, count)
                    lane.embed(ids, lengths[rows], vectors[rows])
        return vectors

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        """A lane for the current stream, which waits until the batch before has left its buffers."""
        lane = self._free.get()
        try:
            lane.left.wait()
            yield lane
        finally:
            lane.left.record()
            self._free.put(lane)


def groups(lengths: Array, sizes: Sequence[Size]) -> Iterator[slice]:
    """Cut rows, in their order, into runs that each fit a size: as few as can be, and about equally long.

    Args:
        lengths: (rows,) int64, tokens of each row, none more than the largest size has.
        sizes: by rising tokens.
    """
    ends = lengths.cumsum()
    largest = sizes[-1]
    start, before = 0, 0
    while start < len(lengths):
        left = int(ends[-1]) - before
        share = math.ceil(left / max(1, math.ceil(left / largest.tokens)))
        size = next(size for size in sizes if share <= size.tokens)
        stop = int(np.searchsorted(ends, before + size.tokens, "right"))
        if stop == start:
            stop = int(np.searchsorted(ends, before + largest.tokens, "right"))
        stop = min(stop, start + size.rows)
        yield slice(start, stop)
        start, before = stop, int(ends[stop - 1])


class _Slot(NamedTuple):
    """Pinned memory that a group is packed in, its array, and when it was copied to the device."""

    memory: Tensor
    array: Array
    copied: torch.cuda.Event


class _Lane:
    """A graph of every size, and the buffers that they read and write: for one batch at a time.

    Graphs of one lane share memory, which is right as long as they run one after the other. Lanes share the weights
    alone: cuBLAS keeps a workspace a stream, so each lane is captured on a stream of its own.

    Attributes:
        left: recorded when the last batch's work on the lane has been enqueued.
    """

    def __init__(self, bert: Bert, dimension: int, longest: int, device: torch.device) -> None:
        self.left = torch.cuda.Event()
        largest = SIZES[-1]
        words = _words(largest)
        stream = torch.cuda.Stream(device)
        pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Size, torch.cuda.CUDAGraph] = {}
        with torch.cuda.stream(stream):
            self._packed = torch.zeros(words, dtype=torch.int32, device=device)
            self._vectors = torch.zeros(largest.rows, dimension, device=device)
            # The largest first: the others find their memory in its.
            for size in reversed(SIZES):
                self._forward(bert, size, longest)  # loads kernels and workspaces, which a capture must not
                graph = self._graphs[size] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    self._forward(bert, size, longest)
        stream.synchronize()
        self._slots = cycle([_slot(words) for _ in range(_SLOTS)])

    def _forward(self, bert: Bert, size: Size, longest: int) -> None:
        """From what is packed to the vectors of the first rows."""
        ids, positions = self._packed[: 2 * size.tokens].view(2, size.tokens)
        starts = self._packed[2 * size.tokens : _words(size)]
        most = min(longest, size.tokens)

        def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            found = varlen_attn(query, key, value, starts, starts, most, most)
            assert isinstance(found, Tensor)  # it is a tuple for callers who ask for more
            return found

        hidden = bert.packed(ids, positions, attention)
        self._vectors[: size.rows].copy_(packed_mean(hidden, starts))

    def embed(self, ids: Array, lengths: Array, into: Tensor) -> None:
        """Enqueue a group on the current stream; the host waits while two groups are on their way.

        Args:
            ids: (tokens,) int32, token numbers of all rows.
            lengths: (rows,) int64, of each row.
            into: (rows, d) float32, where the vectors go.
        """
        slot = next(self._slots)
        size = next(size for size in SIZES if len(ids) <= size.tokens and len(lengths) <= size.rows)
        words = _words(size)
        slot.copied.synchronize()
        pack(ids, lengths, size, slot.array[:words])
        self._packed[:words].copy_(slot.memory[:words], non_blocking=True)
        slot.copied.record()
        self._graphs[size].replay()
        into.copy_(self._vectors[: len(lengths)])


def pack(ids: Array, lengths: Array, size: Size, into: Array) -> None:
    """Lay out what a graph reads.

    Args:
        ids: (tokens,) int32, token numbers of all rows.
        lengths: (rows,) int64, of each row.
        size: of the graph.
        into: int32: the size's tokens' numbers, as many positions, and where rows begin, one more than rows. Tokens
            after the last row are number 0 at position 0; rows after it begin and end where it ends.
    """
    tokens, rows = len(ids), len(lengths)
    numbers, positions, starts = np.split(into, (size.tokens, 2 * size.tokens))
    numbers[:tokens] = ids
    numbers[tokens:] = 0
    starts[0] = 0
    np.cumsum(lengths, out=starts[1 : rows + 1])
    starts[rows + 1 :] = tokens
    positions[:tokens] = np.arange(tokens) - np.repeat(starts[:rows], lengths)
    positions[tokens:] = 0


def _slot(words: int) -> _Slot:
    memory = torch.zeros(words, dtype=torch.int32, pin_memory=True)
    return _Slot(memory, memory.numpy(), torch.cuda.Event(blocking=True))


def _words(size: Size) -> int:
    return 2 * size.tokens + size.rows + 1
