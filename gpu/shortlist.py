"""The best agents for each of many tasks, without the matrix of all scores: torch on either device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .dots import Dots
from .group_search import COMPILED_TASKS, GROUP, Candidates, GroupSearch, NoKernels
from .ops.matrix.precision import products

if TYPE_CHECKING:
    from torch import Tensor

# Of a tile of scores. On two cores 1,024 tasks × 50,000 agents took 460 ms with 16 MiB, 344 with 64, and the product
# alone 294.
TILE_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
LEAST_TASKS = 64  # of a tile: fewer would read the agents' vectors too often

# A tile is searched by the maxima of groups of agents first, which takes a hundredth of the sorting. On a GPU the tile
# is not even written, unless tasks are so many or agents so few that this is faster.
MOST_TASKS = 256
LEAST_AGENTS = 1 << 14

LONGEST = 2.0**48  # vectors; so a score is below 2^97 in size
SHORTEST = 2.0**-40  # of those that are scaled to length 1; squares of what is shorter are lost in float32
LARGEST_LOAD = 2.0**97  # with its weight
LACKING = 2.0**100  # taken off a score for every capability that an agent lacks
IMPOSSIBLE = -(2.0**99)
LOW_WORD = (1 << 32) - 1


@dataclass(frozen=True)
class Tasks:
    """What is to be done.

    Attributes:
        vectors: (m, d) f2, bf16 or f4, none longer than `LONGEST`.
        needs: (m,) int64, a bit for each capability that is needed.
        bits: (b,) int64, the places of the bits that any of them has; None if they have not been looked for.
    """

    vectors: Tensor
    needs: Tensor
    bits: Tensor | None = None


@dataclass(frozen=True)
class Agents:
    """Who can do it.

    Attributes:
        vectors: (n, d) f2, bf16 or f4.
        capacity: (n,) int64 or bool, how many tasks each can take.
        capabilities: (n,) int64, a bit for each; not looked at where no task needs any.
        burden: (n,) float32, the load in units of similarity.
        cosine: vectors count as if they had length 1; the shorter one is than `SHORTEST`, the less, and zeros not.
    """

    vectors: Tensor
    capacity: Tensor
    capabilities: Tensor
    burden: Tensor
    cosine: bool = False


class Shortlist(NamedTuple):
    """The k best agents of each task, the best first and of equals the one of the lowest number.

    Attributes:
        agents: (m, k) int64, 0 where there are fewer.
        utilities: (m, k) float32, -inf there.
    """

    agents: Tensor
    utilities: Tensor


def shortlist(
    tasks: Tasks, agents: Agents, k: int, checkpoint: Callable[[], object], tile_bytes: int | None = None
) -> Shortlist:
    """The agents of the greatest utility: the dot product of the vectors less the burden, but for float32's rounding.

    It is that of vectors as they are, or of the agents' scaled to length 1; the tasks' are not scaled here. Left out
    are agents without room, those that lack a capability the task needs, and those whose vector or load is not finite
    or beyond `LONGEST` and `LARGEST_LOAD`.

    Args:
        tasks: m of them.
        agents: n of them.
        k: length of a list.
        checkpoint: called between tiles; what it raises ends the search.
        tile_bytes: memory for scores and copies of vectors; by default as much as is fastest for many tasks.
    """
    import torch

    try:
        found, beyond = _in_groups(tasks, agents, k, checkpoint)
        utilities = _value(found)
        # Where many agents are as good as the last one listed, the others of them may have been left out.
        sure = (beyond < utilities[:, -1]) | (beyond == -torch.inf)
        if not bool(sure.all()):
            rest = (~sure).nonzero().flatten()
            some = Tasks(tasks.vectors[rest], tasks.needs[rest], tasks.bits)
            found[rest] = _in_tiles(some, agents, k, checkpoint, tile_bytes)
            utilities = _value(found)
    except NoKernels:
        found = _in_tiles(tasks, agents, k, checkpoint, tile_bytes)
        utilities = _value(found)
    listed = utilities > IMPOSSIBLE
    return Shortlist(torch.where(listed, LOW_WORD - (found & LOW_WORD), 0), torch.where(listed, utilities, -torch.inf))


def prepare(vectors: Tensor, cosine: bool) -> None:
    """Compile what searches agents of vectors like these for a few float32 tasks, where that is compiled.

    That takes seconds the first time on a machine, which the first search would take else.

    Args:
        vectors: (n, d), n at least 1.
        cosine: as of `Agents`.
    """
    import torch

    if not vectors.is_cuda:
        return
    some = vectors[:1]
    weight = torch.zeros(1, device=some.device)
    agents = Agents(some, weight == 0, weight.long(), weight, cosine)
    search = _group_search(agents)
    for tasks in COMPILED_TASKS:
        queries = torch.zeros((tasks, some.shape[1]), device=some.device)
        with suppress(NoKernels):
            search.candidates(queries, torch.zeros(tasks, dtype=torch.int64, device=some.device), 1)


def lengths(vectors: Tensor) -> Tensor:
    """(n,) float32, the lengths of vectors; infinite or NaN if a number is."""
    import torch

    found: Tensor = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float32)
    return found


def _in_groups(tasks: Tasks, agents: Agents, k: int, checkpoint: Callable[[], object]) -> Candidates:
    """(m, k) keys of the best of those that were looked at, the greatest first.

    Raises:
        NoKernels: there are none here, or tiles are faster.
    """
    import torch

    if not _suits_groups(tasks, agents):
        raise NoKernels
    search = _group_search(agents)
    queries, needs = tasks.vectors.contiguous(), tasks.needs.contiguous()
    found, height = [], search.height(k)
    for top in range(0, len(queries), height):
        checkpoint()
        rows = slice(top, top + height)
        keys, beyond = search.candidates(queries[rows], needs[rows], k)
        found.append(Candidates(keys.topk(k, 1).values, beyond))
    return found[0] if len(found) == 1 else Candidates(*(torch.cat(column) for column in zip(*found, strict=True)))


def _group_search(agents: Agents) -> GroupSearch:
    room, shortest = agents.capacity > 0, SHORTEST if agents.cosine else 0.0
    return GroupSearch(agents.vectors, agents.burden, room, agents.capabilities, LONGEST, LARGEST_LOAD, shortest)


def _suits_groups(tasks: Tasks, agents: Agents) -> bool:
    return agents.vectors.is_cuda and 0 < len(tasks.vectors) <= MOST_TASKS and len(agents.vectors) >= LEAST_AGENTS


def _in_tiles(tasks: Tasks, agents: Agents, k: int, checkpoint: Callable[[], object], tile_bytes: int | None) -> Tensor:
    """(m, k) int64, the keys of the best, `_NONE` where there are fewer."""
    import torch

    m, place = len(tasks.vectors), agents.vectors.device
    bits = tasks.bits if tasks.bits is not None else _places(tasks.needs)
    dots = Dots.of(tasks.vectors, agents.vectors)
    height, width = _tile(tasks, agents, len(bits), dots, tile_bytes or TILE_BYTES[place.type])
    scores, room = torch.empty(height * width, device=place), dots.room(agents.vectors, width)
    found = torch.full((m, k), _NONE, dtype=torch.int64, device=place)
    for left in range(0, len(agents.vectors), width):
        columns = slice(left, left + width)
        vectors, scale, summands = _prepared(agents, columns, dots.ready(agents.vectors[columns], room), bits)
        padded = -(-len(vectors) // GROUP) * GROUP
        for top in range(0, m, height):
            checkpoint()
            rows = slice(top, top + height)
            keys = found[rows]
            tile = scores[: len(keys) * padded].view(len(keys), padded)
            tile[:, len(vectors) :] = -torch.inf
            within = tile[:, : len(vectors)]
            dots.fill(within, tasks.vectors[rows], vectors)
            if scale is not None:
                within *= scale
            _add(within, tasks.needs[rows], bits, summands)
            keys.copy_(torch.cat([keys, _best(tile, left, k)], 1).topk(k, 1).values)
    return found


def _places(needs: Tensor) -> Tensor:
    """The places of the bits that any of them has."""
    import torch

    return ((needs[:, None] >> torch.arange(64, device=needs.device)) & 1).any(0).nonzero().flatten()


def _tile(tasks: Tasks, agents: Agents, bits: int, dots: Dots, tile_bytes: int) -> tuple[int, int]:
    """Tasks and agents of a tile: all agents if there is room for them beside `LEAST_TASKS`."""
    m, n = max(1, len(tasks.vectors)), max(1, len(agents.vectors))
    copy_bytes = dots.vector_bytes(agents.vectors) + 24 * bits  # what `_prepared` takes on the way
    most = tile_bytes // (min(m, LEAST_TASKS) * dots.score_bytes + copy_bytes) // GROUP * GROUP
    width = min(-(-n // GROUP) * GROUP, max(most, GROUP))
    return max(1, min(m, (tile_bytes - width * copy_bytes) // (width * dots.score_bytes))), width


def _prepared(agents: Agents, columns: slice, vectors: Tensor, bits: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Some agents' vectors, without those that would spoil scores, and what becomes of their scores.

    Returns:
        (c, d) vectors; (c,) float32, what scores are multiplied by, if they are; and (b + 1, c) float32, what each
        capability that is lacked adds, and what is always added.
    """
    import torch

    length = lengths(vectors)
    sound = length <= LONGEST
    burden = agents.burden[columns]
    able = sound & (burden.abs() <= LARGEST_LOAD) & (agents.capacity[columns] > 0)
    bias = torch.where(able, -burden, -torch.inf)
    lacking = (~(agents.capabilities[columns] >> bits[:, None]) & 1).float().mul_(-LACKING)
    if not bool(sound.all()):
        vectors = torch.where(sound[:, None], vectors, 0)
        length = torch.where(sound, length, 1)
    scale = length.clamp(min=SHORTEST).reciprocal() if agents.cosine else None
    return vectors, scale, torch.cat([lacking, bias[None]])


def _add(scores: Tensor, needs: Tensor, bits: Tensor, summands: Tensor) -> None:
    """Add what `_prepared` found; scores fall far below `IMPOSSIBLE` where the agent lacks what the task needs."""
    import torch

    if not len(bits):
        scores += summands[0]
        return
    # The last is for what is always added. Rows begin where vector loads of a GPU can.
    needed = torch.ones((len(needs), -(-len(summands) // 4) * 4), device=scores.device)[:, : len(summands)]
    needed[:, :-1] = (needs[:, None] >> bits) & 1
    with products(needed):
        scores.addmm_(needed, summands)


def _best(tile: Tensor, first: int, k: int) -> Tensor:
    """The keys of the k greatest scores of each row, or of all groups' if they are fewer.

    Those are in the k groups of the greatest maxima: each of these holds one that is as great and comes as early.

    Args:
        tile: (m, c) float32, c a multiple of `GROUP`.
        first: number of the agent in the first column.
        k: how many.
    """
    import torch

    m, c = tile.shape
    grouped = tile.view(m, c // GROUP, GROUP)
    numbers = torch.arange(c // GROUP, device=tile.device)
    groups = LOW_WORD - (_key(grouped.amax(2), numbers).topk(min(k, c // GROUP), 1).values & LOW_WORD)
    scores = grouped.gather(1, groups[:, :, None].expand(-1, -1, GROUP))
    columns = first + groups[:, :, None] * GROUP + torch.arange(GROUP, device=tile.device)
    keys = _key(scores, columns).flatten(1)
    return keys.topk(min(k, keys.shape[1]), 1).values


_NONE = -(1 << 63)


def _key(scores: Tensor, numbers: Tensor) -> Tensor:
    """Scores and numbers as one int64 each, greater for the greater score and of equals for the lower number."""
    import torch

    bits = (scores + 0.0).view(torch.int32)  # the sum makes 0 of -0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (LOW_WORD - numbers)


def _value(keys: Tensor) -> Tensor:
    """The scores that keys were made of; NaN of `_NONE`."""
    import torch

    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
