"""Drawn context graphs, made on the device that they are for, and copies of them on another."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aikoryu.bus.columns import Array
from aikoryu.gpu.context.adjacency import Adjacency
from aikoryu.gpu.context.graph import ContextGraph

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DEGREE = 32
DIMENSION = 384
CLUSTER = 64
INSIDE = 31  # of an agent's edges, in a clustered graph; the others come from anywhere
PUT_ROWS = 1 << 17  # in one call: a table that grows copies itself


class Window(NamedTuple):
    """What agents say in one window.

    Attributes:
        agents: (m,) int64, each once.
        vectors: (m, d) float32, of length 1.
        stamps: (m,) uint64, versions and writers alike.
    """

    agents: Array
    vectors: Tensor
    stamps: Array

    def put(self, graph: ContextGraph) -> None:
        """Say it to a graph."""
        graph.put(self.agents, self.vectors, self.stamps, self.stamps)

    def to(self, place: torch.device) -> Window:
        """The same on a device."""
        return self._replace(vectors=self.vectors.to(place))


class Windows:
    """Seeded windows, one after the other; later ones hold against earlier ones.

    Args:
        agents: of the graph.
        place: its device.
        version: of all that has been said before, at the most.
    """

    def __init__(self, agents: int, place: torch.device, version: int = 1) -> None:
        import torch

        self._agents = agents
        self._place = place
        self._draw = torch.Generator(place).manual_seed(agents)
        self._version = version

    def next(self, rows: int) -> Window:
        """A window of so many agents."""
        import torch

        agents = torch.unique(torch.randint(self._agents, (rows,), generator=self._draw, device=self._place))
        self._version += 1
        stamps = np.full(len(agents), self._version, np.uint64)
        return Window(agents.cpu().numpy(), unit_vectors(len(agents), self._draw), stamps)


def drawn(kind: str, agents: int, alpha: float, place: torch.device) -> ContextGraph:
    """A graph whose agents hear `DEGREE` others each, and all know something; not settled.

    Args:
        kind: `uniform`: they hear any; `clustered`: most of them lie within `CLUSTER` numbers.
        agents: how many.
        alpha, place: of the graph.
    """
    import torch

    draw = torch.Generator(place).manual_seed(1)
    graph = ContextGraph(DIMENSION, alpha, place)
    everybody = np.arange(agents)
    graph.watch(everybody, np.full(agents, np.inf, np.float32), np.zeros_like(everybody))  # takes all slots at once
    for begin in range(0, agents, PUT_ROWS):
        part = everybody[begin : begin + PUT_ROWS]
        ones = np.ones(len(part), np.uint64)
        graph.put(part, unit_vectors(len(part), draw), ones, ones)
    target = torch.arange(agents, device=place).repeat_interleave(DEGREE)
    source = torch.randint(agents, target.shape, generator=draw, device=place)
    if kind == "clustered":
        near = target - target % CLUSTER + source % CLUSTER
        is_near = torch.arange(len(target), device=place) % DEGREE < INSIDE
        source = torch.where(is_near & (near < agents), near, source)
    ones = np.ones(len(target), np.uint64)
    graph.link(source.cpu().numpy(), target.cpu().numpy(), ones.astype(np.float32), ones, ones)
    return graph


def unit_vectors(rows: int, draw: torch.Generator) -> Tensor:
    """(rows, d) float32, of length 1 each."""
    import torch

    return torch.nn.functional.normalize(torch.randn(rows, DIMENSION, generator=draw, device=draw.device))


def copied(graph: ContextGraph, place: torch.device) -> ContextGraph:
    """The same graph on another device: its columns as they are, where words would take minutes on a CPU."""
    copy = ContextGraph(graph.dimension, graph.alpha, place)
    for column in fields(graph.table):
        setattr(copy.table, column.name, getattr(graph.table, column.name).to(place, copy=True))
    for adjacency, other in ((copy.edges.heard, graph.edges.heard), (copy.edges.hearers, graph.edges.hearers)):
        _copy(adjacency, other, place)
    copy.edges.scale = graph.edges.scale.to(place)
    copy.slots, copy.last = deepcopy(graph.slots), deepcopy(graph.last)
    return copy


def _copy(to: Adjacency, adjacency: Adjacency, place: torch.device) -> None:
    for name, value in vars(adjacency).items():
        if name == "columns":
            to.columns = {column: values.to(place, copy=True) for column, values in value.items()}
        else:
            setattr(to, name, value if isinstance(value, int) else value.to(place, copy=True))
