"""Kernels of `group_search`, in Triton. Only imported where there is a GPU; Triton comes with torch for CUDA.

Numbers that change from call to call are not specialized on: a kernel takes seconds to compile.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tasks"])  # type: ignore[untyped-decorator, unused-ignore]
def split_tasks(
    queries: tl.tensor,
    parts: tl.tensor,
    slack: tl.tensor,
    tasks: tl.tensor,
    width: tl.tensor,
    stride: tl.tensor,
    share: tl.tensor,
    TASK_PARTS: tl.constexpr,  # noqa: N803 - Triton's way to write what is known when it compiles
    STEP: tl.constexpr,  # noqa: N803
) -> None:
    """Vectors of tasks as sums of bf16, and how far scores may be above those of the parts.

    What the parts leave out counts by its length (Cauchy and Schwarz); `share` of the sizes of all products is what
    else is left out, and what sums are off.

    Args:
        queries: (tasks, width), rows `stride` apart.
        parts: (TASK_PARTS, tasks, width) bf16, written.
        slack: (tasks, 2) float32, written: for each unit of an agent's length, and always.
    """
    row = tl.program_id(0)
    squares = tl.zeros((STEP,), tl.float32)
    missing = tl.zeros((STEP,), tl.float32)
    for start in range(0, width, STEP):
        place = start + tl.arange(0, STEP)
        within = place < width
        number = tl.load(queries + row * stride + place, mask=within, other=0.0).to(tl.float32)
        high = number.to(tl.bfloat16)
        rest = number - high.to(tl.float32)
        tl.store(parts + row * width + place, high, mask=within)
        if TASK_PARTS == 2:
            low = rest.to(tl.bfloat16)
            rest = rest - low.to(tl.float32)
            tl.store(parts + (tasks + row) * width + place, low, mask=within)
        squares += number * number
        missing += rest * rest
    length = tl.sqrt(tl.sum(squares, 0))
    # Lengths are rounded, too; and numbers too small for bf16 or float32 are lost whatever their share.
    tl.store(slack + 2 * row, 1.02 * (tl.sqrt(tl.sum(missing, 0)) + share * length))
    tl.store(slack + 2 * row + 1, 7.9e-31 * (1.0 + length))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _bias(
    burden: tl.tensor,
    room: tl.tensor,
    agent: tl.tensor,
    squares: tl.tensor,
    longest: tl.tensor,
    largest_load: tl.tensor,
) -> tl.tensor:
    """What is added to agents' scores: -inf for those that nobody gets."""
    weight = tl.load(burden + agent)
    able = (tl.load(room + agent) != 0) & (tl.abs(weight) <= largest_load) & (squares <= longest)
    return tl.where(able, -weight, float("-inf"))


@triton.jit(  # type: ignore[untyped-decorator, unused-ignore]
    do_not_specialize=["tasks", "agents"], do_not_specialize_on_alignment=["needs"]
)
def bound_groups(
    parts: tl.tensor,
    slack: tl.tensor,
    needs: tl.tensor,
    vectors: tl.tensor,
    burden: tl.tensor,
    room: tl.tensor,
    capabilities: tl.tensor,
    bounds: tl.tensor,
    tasks: tl.tensor,
    agents: tl.tensor,
    width: tl.tensor,
    stride: tl.tensor,
    bounds_stride: tl.tensor,
    longest: tl.tensor,
    largest_load: tl.tensor,
    TASK_PARTS: tl.constexpr,  # noqa: N803
    VECTOR_PARTS: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
    TILE_AGENTS: tl.constexpr,  # noqa: N803
    TILE_TASKS: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
    SHORTEST: tl.constexpr,  # noqa: N803
) -> None:
    """What no score in a group of agents is above, for each task; -inf where none of the group can do it.

    Args:
        parts, slack: as `split_tasks` made them.
        needs: (tasks,) int64.
        vectors: (agents, width), rows `stride` apart; bf16 where VECTOR_PARTS is 1.
        burden: (agents,) float32.
        room: (agents,) bytes, 0 for none.
        capabilities: (agents,) int64.
        bounds: (tasks, groups) float32, rows `bounds_stride` apart; written.
        longest: square of the greatest length.
        largest_load: burdens beyond it do not count.
        SHORTEST: scores are divided by the agent's length, or by this if it is shorter; 0 if they are not.
    """
    blocks = tl.cdiv(tasks, TILE_TASKS)
    # Programs that follow one another read the same agents, which then come from the cache.
    first = (tl.program_id(0) // blocks) * TILE_AGENTS
    row = (tl.program_id(0) % blocks) * TILE_TASKS + tl.arange(0, TILE_TASKS)
    agent = first + tl.arange(0, TILE_AGENTS)
    safe_row, safe_agent = tl.minimum(row, tasks - 1), tl.minimum(agent, agents - 1)
    from_vectors = vectors + safe_agent.to(tl.int64)[:, None] * stride
    from_parts = parts + safe_row[None, :] * width

    scores = tl.zeros((TILE_AGENTS, TILE_TASKS), tl.float32)
    squares = tl.zeros((TILE_AGENTS,), tl.float32)
    for start in range(0, width, STEP):
        place = start + tl.arange(0, STEP)
        vector = tl.load(from_vectors + place[None, :], mask=place[None, :] < width, other=0.0)
        high_task = tl.load(from_parts + place[:, None], mask=place[:, None] < width, other=0.0)
        wide = vector.to(tl.float32)
        squares += tl.sum(wide * wide, 1)
        high = vector if VECTOR_PARTS == 1 else wide.to(tl.bfloat16)
        scores = tl.dot(high, high_task, scores)
        if TASK_PARTS == 2:
            low_task = tl.load(from_parts + tasks * width + place[:, None], mask=place[:, None] < width, other=0.0)
            scores = tl.dot(high, low_task, scores)
        if VECTOR_PARTS == 2:
            low = (wide - high.to(tl.float32)).to(tl.bfloat16)
            scores = tl.dot(low, high_task, scores)

    relative, absolute = tl.load(slack + 2 * safe_row), tl.load(slack + 2 * safe_row + 1)
    length = tl.sqrt(squares)
    if SHORTEST > 0:
        length = tl.maximum(length, SHORTEST)
    upper = scores + (length[:, None] * relative[None, :] + absolute[None, :])
    if SHORTEST > 0:
        upper *= (1.0 / length)[:, None]
    upper += _bias(burden, room, safe_agent, squares, longest, largest_load)[:, None]
    need = tl.load(needs + safe_row)[None, :]
    able = (tl.load(capabilities + safe_agent)[:, None] & need) == need
    able = able & (agent < agents)[:, None] & (squares <= longest)[:, None]
    upper = tl.where(able, upper, float("-inf"))
    greatest = tl.max(tl.reshape(upper, (TILE_AGENTS // GROUP, GROUP, TILE_TASKS)), 1)
    group = first // GROUP + tl.arange(0, TILE_AGENTS // GROUP)
    into = bounds + row.to(tl.int64)[None, :] * bounds_stride + group[:, None]
    tl.store(into, greatest, mask=(row < tasks)[None, :] & (group < tl.cdiv(agents, GROUP))[:, None])


@triton.jit(  # type: ignore[untyped-decorator, unused-ignore]
    do_not_specialize=["agents", "listed"], do_not_specialize_on_alignment=["needs"]
)
def score_groups(
    queries: tl.tensor,
    needs: tl.tensor,
    groups: tl.tensor,
    vectors: tl.tensor,
    burden: tl.tensor,
    room: tl.tensor,
    capabilities: tl.tensor,
    keys: tl.tensor,
    agents: tl.tensor,
    listed: tl.tensor,
    width: tl.tensor,
    query_stride: tl.tensor,
    stride: tl.tensor,
    longest: tl.tensor,
    largest_load: tl.tensor,
    GROUP: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
    SHORTEST: tl.constexpr,  # noqa: N803
) -> None:
    """The scores of all agents of some groups, in float32; -inf for those who cannot do the task.

    Args:
        queries: (tasks, width), rows `query_stride` apart.
        needs: (tasks,) int64.
        groups: (tasks, listed) int64, which groups.
        vectors, burden, room, capabilities, longest, largest_load, SHORTEST: as of `bound_groups`.
        keys: (tasks, listed, GROUP) int64, written: scores and agents as `shortlist` sorts them.
    """
    pair = tl.program_id(0)
    row = pair // listed
    agent = tl.load(groups + pair) * GROUP + tl.arange(0, GROUP)
    safe = tl.minimum(agent, agents - 1)
    products = tl.zeros((GROUP, STEP), tl.float32)
    squares = tl.zeros((GROUP, STEP), tl.float32)
    for start in range(0, width, STEP):
        place = start + tl.arange(0, STEP)
        within = place < width
        query = tl.load(queries + row * query_stride + place, mask=within, other=0.0).to(tl.float32)
        vector = tl.load(vectors + safe[:, None] * stride + place[None, :], mask=within[None, :], other=0.0)
        vector = vector.to(tl.float32)
        products += vector * query[None, :]
        squares += vector * vector
    squared = tl.sum(squares, 1)
    score = tl.sum(products, 1)
    if SHORTEST > 0:
        # Rounded as elsewhere: of one direction, lengths that differ by powers of 2 give the same score.
        score = tl.div_rn(score, tl.maximum(tl.sqrt_rn(squared), SHORTEST))
    score += _bias(burden, room, safe, squared, longest, largest_load)
    need = tl.load(needs + row)
    able = (tl.load(capabilities + safe) & need) == need
    able = able & (agent < agents) & (squared <= longest)
    score = tl.where(able, score, float("-inf"))
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)  # 0 also of -0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - agent)
    tl.store(keys + pair.to(tl.int64) * GROUP + tl.arange(0, GROUP), key)
