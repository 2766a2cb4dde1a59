"""Choosing an agent without a worker: what to fall back to where nobody answers `agents.assign`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SHORTLIST = 8


def least_loaded(
    similarity: NDArray[np.floating[Any]],
    load: NDArray[np.floating[Any]],
    *,
    need: int = 0,
    capabilities: NDArray[np.uint64] | None = None,
    capacity: NDArray[np.uint32] | None = None,
    shortlist: int = SHORTLIST,
) -> int:
    """The least loaded of the agents that suit a task best.

    Of equal loads the more similar agent is chosen, of equal ones of these the first.

    Args:
        similarity: (n,), of the task to each agent; an agent for whom it is NaN gets nothing.
        load: (n,), likewise.
        need: bits of the capabilities that the task needs.
        capabilities: (n,) uint64, bits of those that each agent has; all have every one if absent.
        capacity: (n,), how many tasks each can take; more than one if absent.
        shortlist: how many of the most similar agents are looked at.

    Returns:
        The agent's place, -1 if no agent can take the task.
    """
    able = ~(np.isnan(similarity) | np.isnan(load))
    if capabilities is not None:
        able &= (capabilities & np.uint64(need)) == np.uint64(need)
    if capacity is not None:
        able &= capacity > 0
    agents = np.flatnonzero(able)
    if not len(agents):
        return -1
    order = np.argsort(-similarity[agents], kind="stable")[:shortlist]
    listed = agents[order]
    return int(listed[np.argmin(load[listed])])
