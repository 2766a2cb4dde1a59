"""Whom an agent's context reaches: those who hear it, those who hear these, and where they stand in a picture."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..agents.context import Context

MOST_AGENTS = (24, 44, 60)  # within so many hops: a crowd around the agent leaves room for those farther off
HOPS = len(MOST_AGENTS)


class Edge(NamedTuple):
    """One agent hears another.

    Attributes:
        source: who is heard.
        target: who hears.
        weight: of the link.
        is_branch: the target is in the picture because of this one.
    """

    source: str
    target: str
    weight: float
    is_branch: bool


@dataclass
class Reach:
    """What a context reaches.

    Attributes:
        graph, agent: whose it is.
        epoch: of the graph when it was asked for.
        hops: how many links each agent is away, the agent itself among them with 0, nearest first.
        edges: between these.
        alike: the cosine of each one's blended context and the agent's own; None where either is zero.
        left_out: agents within as many links for which there was no room.
    """

    graph: str
    agent: str
    epoch: int
    hops: dict[str, int]
    edges: list[Edge] = field(default_factory=list)
    alike: dict[str, float | None] = field(default_factory=dict)
    left_out: int = 0


async def reach_of(context: Context, agent: str) -> Reach:
    """Ask who hears an agent, over at most 3 links: the heaviest, where there are more than 60 agents."""
    hops, edges = {agent: 0}, list[Edge]()
    ring, left_out = [agent], set[str]()
    for hop in range(1, HOPS + 1):
        links = await asyncio.gather(*map(context.links, ring))
        found: dict[str, Edge] = {}
        for source, each in zip(ring, links, strict=True):
            for target, weight in each.hearers:
                edge = Edge(source, target, weight, is_branch=False)
                edges.append(edge)
                if target not in hops and (target not in found or weight > found[target].weight):
                    found[target] = edge
        ring = sorted(found, key=lambda name: (-found[name].weight, name))
        room = MOST_AGENTS[hop - 1] - len(hops)
        left_out |= set(ring[room:])
        ring = ring[:room]
        hops |= dict.fromkeys(ring, hop)
        branches = {found[name] for name in ring}
        edges = [edge._replace(is_branch=True) if edge in branches else edge for edge in edges]
    names = list(hops)
    own = await context.get(agent, what="own")
    seen = await context.get_many(names)
    of = own.vector if own.version else seen.vectors[0]
    return Reach(
        context.name,
        agent,
        int(seen.epochs.max()),
        hops,
        [edge for edge in edges if edge.target in hops and edge.target != edge.source],
        {name: cosine(vector, of) for name, vector in zip(names, seen.vectors, strict=True)},
        len(left_out - hops.keys()),
    )


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    """How alike two vectors are, -1 to 1; None where one is zero."""
    length = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(one @ other) / length if length else None


class Place(NamedTuple):
    """Where an agent stands around another.

    Attributes:
        angle: from the right, clockwise, radians.
        room: how wide its part of the circle is, radians.
        has_branches: others stand behind it.
    """

    angle: float
    room: float
    has_branches: bool


def places_of(reach: Reach, gap: float) -> dict[str, Place]:
    """A place for each agent but the one in the middle: each branch has a part of the circle to itself.

    Args:
        reach: who is there.
        gap: what of the circle stays free, at the top, radians.
    """
    branches: dict[str, list[str]] = {name: [] for name in reach.hops}
    for edge in reach.edges:
        if edge.is_branch:
            branches[edge.source].append(edge.target)
    leaves: dict[str, int] = {}
    for name in reversed(list(reach.hops)):  # the farthest first
        leaves[name] = sum(leaves[each] for each in branches[name]) or 1
    if not branches[reach.agent]:
        return {}
    unit = (2 * math.pi - gap) / leaves[reach.agent]
    places: dict[str, Place] = {}
    _place(reach.agent, -math.pi / 2 + gap / 2, unit, branches, leaves, places)
    del places[reach.agent]
    return places


def _place(
    name: str,
    begin: float,
    unit: float,
    branches: Mapping[str, Sequence[str]],
    leaves: Mapping[str, int],
    places: dict[str, Place],
) -> None:
    room = unit * leaves[name]
    places[name] = Place(begin + room / 2, room, bool(branches[name]))
    for each in branches[name]:
        _place(each, begin, unit, branches, leaves, places)
        begin += unit * leaves[each]
