"""The best agents of a few tasks on a GPU: bounds of groups of agents first, then scores of the groups that matter.

A kernel reads each agent's vector once, multiplies on tensor cores and keeps of each group of agents what no score in
it is above. If the groups of the greatest bounds have k scores that are greater than every other bound, those are the k
greatest of all, however the bounds were rounded.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import structlog

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 64
"""Agents of a group."""

MORE_GROUPS = 16
"""Groups that are looked at beyond as many as scores are wanted: those that rounding may have put before others."""

TILE_AGENTS = 128
COMPILED_TASKS = (16, 64)
"""Tasks of a tile: those for which there is code. More are several tiles."""

MOST_BOUNDS = 1 << 22
MOST_SCORES = 1 << 19
"""At once: 16 MiB of bounds, and as much of scores with what sorts them."""

_log = structlog.get_logger(__name__)


class NoKernels(RuntimeError):
    """Triton is missing or cannot compile here; the log says why. Scores have to be found without."""


class Candidates(NamedTuple):
    """Agents of some groups, for each task.

    Attributes:
        keys: (m, c) int64, of scores and agents, as `shortlist` sorts them.
        beyond: (m,) float32, what the score of no other agent is above.
    """

    keys: Tensor
    beyond: Tensor


@dataclass(frozen=True)
class GroupSearch:
    """Finds candidates among agents.

    Attributes:
        vectors: (n, d) f2, bf16 or f4 on a GPU, n at least 1, the numbers of a row one after the other.
        burden: (n,) float32, what is taken off an agent's scores.
        room: (n,) bool, who can be a candidate.
        capabilities: (n,) int64.
        longest: vectors beyond this length are no candidates.
        largest_load: nor are agents of greater burdens.
        shortest: scores are divided by the length of the agent's vector, or by this if it is shorter; 0 if they are
            dot products.
    """

    vectors: Tensor
    burden: Tensor
    room: Tensor
    capabilities: Tensor
    longest: float
    largest_load: float
    shortest: float = 0.0

    def height(self, k: int) -> int:
        """Tasks that there is memory for at once."""
        groups = -(-len(self.vectors) // GROUP)
        most = min(MOST_BOUNDS // max(groups, 1), MOST_SCORES // ((k + MORE_GROUPS) * GROUP))
        return max(16, most // 16 * 16)

    def candidates(self, queries: Tensor, needs: Tensor, k: int) -> Candidates:
        """Agents of the groups of the greatest bounds, of a few more groups than k.

        Args:
            queries: (m, d) f2, bf16 or f4, the numbers of a row one after the other.
            needs: (m,) int64, a bit for each capability.
            k: how many scores are wanted.

        Raises:
            NoKernels: there are none here.
        """
        bounds = self.bounds(queries, needs)
        greatest, groups = _greatest(bounds, k + MORE_GROUPS)
        beyond = greatest.amin(1)
        if groups.shape[1] == bounds.shape[1]:
            beyond = beyond.fill_(float("-inf"))
        return Candidates(self.keys(queries, needs, groups), beyond)

    def bounds(self, queries: Tensor, needs: Tensor) -> Tensor:
        """What no score in a group is above: (m, g) float32, g a multiple of `GROUP`; -inf beyond the groups."""
        import torch

        vectors = self.vectors
        m, (n, d) = len(queries), vectors.shape
        task_parts, vector_parts = (1 if one.dtype == torch.bfloat16 else 2 for one in (queries, vectors))
        parts = torch.empty((task_parts, m, d), dtype=torch.bfloat16, device=vectors.device)
        slack = torch.empty((m, 2), device=vectors.device)
        blocks = -(-n // GROUP**2)
        found = torch.full((m, blocks * GROUP), -torch.inf, device=vectors.device)
        # Two bf16 parts of a vector leave out 2^-16 of it, and as much is the product of two second parts. Sums of d
        # products in float32, here and in `keys`, each rounded or cut off at every step and in any order, are together
        # within (d + 64) 2^-22 of the sum of all sizes. So are the lengths that scores are divided by, here and there,
        # and what comes of it: roots halve what sums of squares are off.
        sums = (d + 64) * 2.0**-22
        share = (2 * sums if self.shortest else sums) + (2.0**-15 if vector_parts == 2 else 0.0)
        tile_tasks = next((most for most in COMPILED_TASKS if m <= most), COMPILED_TASKS[-1])
        programs = -(-n // TILE_AGENTS) * -(-m // tile_tasks)
        with _launching(vectors) as kernels:
            kernels.split_tasks[(m,)](
                *(queries, parts, slack, m, d, queries.stride(0), share),
                TASK_PARTS=task_parts,
                STEP=256,
            )
            kernels.bound_groups[(programs,)](
                *(parts, slack, needs, vectors, self.burden, self.room, self.capabilities, found),
                *(m, n, d, vectors.stride(0), found.stride(0), self.longest**2, self.largest_load),
                TASK_PARTS=task_parts,
                VECTOR_PARTS=vector_parts,
                GROUP=GROUP,
                TILE_AGENTS=TILE_AGENTS,
                TILE_TASKS=tile_tasks,
                STEP=128 // vectors.itemsize,
                SHORTEST=self.shortest,
                num_warps=4,
                num_stages=4 if vectors.itemsize == 4 else 3,
            )
        return found

    def keys(self, queries: Tensor, needs: Tensor, groups: Tensor) -> Tensor:
        """Keys of the scores of all agents of groups, (m, c) int64: (m, c * `GROUP`) int64."""
        import torch

        vectors = self.vectors
        n, d = vectors.shape
        found = torch.empty((len(groups), groups.shape[1] * GROUP), dtype=torch.int64, device=vectors.device)
        with _launching(vectors) as kernels:
            kernels.score_groups[(groups.numel(),)](
                *(queries, needs, groups, vectors, self.burden, self.room, self.capabilities, found),
                *(n, groups.shape[1], d, queries.stride(0), vectors.stride(0), self.longest**2, self.largest_load),
                GROUP=GROUP,
                STEP=64,
                SHORTEST=self.shortest,
                num_warps=4,
            )
        return found


def _greatest(bounds: Tensor, listed: int) -> tuple[Tensor, Tensor]:
    """The greatest of each row and where they are, in any order: (m, listed), or all if they are fewer.

    Those are in the blocks of the greatest maxima, as many as are listed.
    """
    import torch

    m, g = bounds.shape
    blocks = bounds.view(m, g // GROUP, GROUP)
    if blocks.shape[1] <= listed:
        found = bounds.topk(min(listed, g), 1, sorted=False)
        return found.values, found.indices
    chosen = blocks.amax(2).topk(listed, 1, sorted=False).indices
    within = blocks.gather(1, chosen[:, :, None].expand(-1, -1, GROUP)).flatten(1)
    values, places = within.topk(listed, 1, sorted=False)
    block = chosen.gather(1, torch.div(places, GROUP, rounding_mode="floor"))
    return values, block * GROUP + places % GROUP


@contextmanager
def _launching(on: Tensor) -> Iterator[ModuleType]:
    """The kernels, to be launched on a tensor's device; what goes wrong, but for the device, is logged once."""
    import torch

    if (kernels := _kernels()) is None or _given_up.is_set():
        raise NoKernels
    try:
        with torch.cuda.device(on.device) if on.is_cuda else nullcontext():
            yield kernels
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # no compiler, no folder to keep what it made, a release that reads kernels otherwise
        _given_up.set()
        _log.warning("agents are searched without kernels: Triton cannot compile or launch them", reason=repr(error))
        raise NoKernels from error


_given_up = threading.Event()


@lru_cache(maxsize=1)
def _kernels() -> ModuleType | None:
    """None where Triton is missing, or knows of no GPU."""
    try:
        return importlib.import_module(".group_kernels", __package__)
    except ImportError as error:
        _log.info("agents are searched without kernels: no Triton", reason=str(error))
        return None
