"""A graph as bytes, in parts: what its log has said so far, without what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from ...bus.columns import Array
from ..device import Device, bits, tensor_of
from .adjacency import Adjacency
from .agents import AgentTable, LastWords
from .deadlines import Ends
from .graph import LEAST_SLOTS
from .names import Names
from .stamps import Stamps
from .state import GraphState
from .words import Spec

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
PART_BYTES = 512 << 10
FETCHED_BYTES = 32 << 20  # from the device at once

_AGENT = ("own", "capabilities", "load")
_EDGE = ("weight", "version", "writer")


class _Section(msgspec.Struct, array_like=True):
    """One array: its name, NumPy's dtype and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class _Header(msgspec.Struct, array_like=True):
    format: int
    spec: tuple[int, float, float]
    epoch: int
    now_ms: int
    ended_ms: int | None
    agents: int
    sections: list[_Section]


_header_decoder = msgspec.msgpack.Decoder(_Header)


@dataclass(frozen=True)
class Frozen:
    """A copy of a graph at an epoch, which further windows do not change.

    Agents are numbered anew from 0, in the order of the numbers that they have; names, rows and edges follow that.

    Attributes:
        spec, epoch, now_ms, ended_ms: of the state.
        agents: how many have a slot.
        columns: by name, tensors on the graph's device and NumPy arrays.
    """

    spec: Spec
    epoch: int
    now_ms: int
    ended_ms: int | None
    agents: int
    columns: dict[str, Tensor | Array]

    @property
    def bytes(self) -> int:
        """Of all columns."""
        return sum(column.nbytes for column in self.columns.values())


def frozen(state: GraphState) -> Frozen:
    """Copy a graph between two windows; a copy of what is on a device stays there.

    Not copied are what reaches agents, which follows from the rest, and who watches, who will ask again.
    """
    import torch

    graph = state.graph
    table, heard, slots = graph.table, graph.edges.heard, graph.slots
    taken = slots.taken().nonzero()[0]
    taken = taken[slots.agents[taken].argsort()]
    numbers, order = slots.agents[taken], tensor_of(taken, state.device.place)
    rank = order.new_zeros(slots.used)
    rank[order] = torch.arange(len(order), device=order.device)
    stamps = graph.last.stamps[taken]
    columns: dict[str, Tensor | Array] = {
        "names": _bytes_of(state.names.of(numbers)),
        "last.version": stamps.version,
        "last.writer": stamps.writer,
        "last.is_there": graph.last.is_there[taken],
    }
    for name in _AGENT:
        columns[f"agent.{name}"] = getattr(table, name)[order]
    columns["scale"] = graph.edges.scale[order]
    columns["heard"] = heard.count[order].int()
    position = heard.entries(order).position
    columns["other"] = rank.int()[heard.other[position]]
    for name in _EDGE:
        columns[f"edge.{name}"] = heard.columns[name][position]
    for name, deadlines in (("agent_ends", state.agent_ends), ("edge_ends", state.edge_ends)):
        ends = deadlines.sift()
        for each in fields(ends):
            column = getattr(ends, each.name)
            columns[f"{name}.{each.name}"] = np.searchsorted(numbers, column) if each.name == "what" else column
    state.device.synchronize()  # another thread reads it, on another stream
    return Frozen(state.spec, state.epoch, state.now_ms, state.ended_ms, len(numbers), columns)


def parts(copy: Frozen) -> Iterator[bytes]:
    """The copy as bytes, `PART_BYTES` at a time; of a device's no more is in memory than `FETCHED_BYTES`."""
    spec = copy.spec
    sections = [_Section(name, _dtype(column), tuple(column.shape)) for name, column in copy.columns.items()]
    header = _Header(
        FORMAT,
        (spec.dimension, spec.alpha, spec.epsilon),
        copy.epoch,
        copy.now_ms,
        copy.ended_ms,
        copy.agents,
        sections,
    )
    encoded = msgspec.msgpack.encode(header)
    part = bytearray(len(encoded).to_bytes(4, "little") + encoded)
    for column in copy.columns.values():
        for block in _blocks(column):
            at = 0
            while at < len(block):
                more = block[at : at + PART_BYTES - len(part)]
                part += more
                at += len(more)
                if len(part) == PART_BYTES:
                    yield bytes(part)
                    part.clear()
    if part:
        yield bytes(part)


def restored(parts: Iterable[bytes], device: Device) -> GraphState:
    """The state that was copied, on this device; what reaches agents is computed anew, and nobody watches.

    Raises:
        ValueError: the parts are not all, or not of a graph.
    """
    import torch

    reader = _Reader(parts)
    header = reader.header()
    state, n = GraphState(Spec(*header.spec), device), header.agents
    state.epoch, state.now_ms, state.ended_ms = header.epoch, header.now_ms, header.ended_ms
    graph, place = state.graph, device.place
    graph.slots.take(np.arange(n))
    # Whoever works on the graph's rows has its table, which stays; to grow it would take them twice.
    rows = AgentTable.empty(max(n, LEAST_SLOTS), graph.dimension, place)
    for column in fields(rows):
        setattr(graph.table, column.name, getattr(rows, column.name))
    graph.last = LastWords.none(len(graph.table))
    graph.edges.widen(len(graph.table))
    columns: dict[str, Tensor] = {}
    ends: dict[str, Array] = {}
    said: dict[str, Array] = {}
    for section in header.sections:
        array = reader.array(section)
        group, _, name = section.name.partition(".")
        if group == "names":
            state.names = Names(array.tobytes().decode().split("\n") if n else ())
        elif group.endswith("_ends"):
            ends[section.name] = array
        elif group == "last":
            said[name] = array
        elif group == "agent":
            kept: Tensor = getattr(graph.table, name)
            kept[:n] = torch.from_numpy(array).view(kept.dtype).to(place)
        else:
            columns[section.name] = torch.from_numpy(array).to(place)
    reader.end()
    graph.last.stamps[:n], graph.last.is_there[:n] = Stamps(said["version"], said["writer"]), said["is_there"]
    graph.table.is_there[:n] = torch.from_numpy(said["is_there"]).to(place)
    graph.edges.scale[:n] = columns.pop("scale")
    _lay_edges(state, columns, n)
    for kind, deadlines in (("agent_ends", state.agent_ends), ("edge_ends", state.edge_ends)):
        deadlines.add(Ends(*(ends[f"{kind}.{each.name}"] for each in fields(Ends))))
    graph.refresh()
    state.settle()
    return state


def _lay_edges(state: GraphState, columns: dict[str, Tensor], n: int) -> None:
    """Set the edges of a graph that has none; `columns` is emptied."""
    import torch

    edges = state.graph.edges
    count, other = columns.pop("heard").long(), columns.pop("other")
    stamped = {name: columns.pop(f"edge.{name}") for name in _EDGE}
    # Stable, so that who hears an agent stands in order.
    order = other.sort(stable=True).indices
    hearer = torch.repeat_interleave(torch.arange(n, dtype=torch.int32, device=other.device), count)[order]
    weight = stamped["weight"][order]
    del order
    _lay(edges.hearers, torch.bincount(other, minlength=n), hearer, {"weight": weight})
    del hearer, weight
    _lay(edges.heard, count, other, stamped)


def _lay(adjacency: Adjacency, count: Tensor, other: Tensor, columns: dict[str, Tensor]) -> None:
    """Let rows be these, one after the other."""
    adjacency.count[: len(count)] = count
    adjacency.start = adjacency.count.cumsum(0) - adjacency.count
    adjacency.other, adjacency.columns = other, columns
    adjacency.compact()  # for room at the end


class _Reader:
    """Arrays from parts."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._part: Array = np.empty(0, np.uint8)

    def take(self, count: int) -> Array:
        """(count,) uint8, what comes next."""
        taken: Array = np.empty(count, np.uint8)
        at = 0
        while at < count:
            if not len(self._part):
                part = next(self._parts, None)
                if part is None:
                    raise ValueError(f"a snapshot ends {count - at} bytes too early: it was not kept whole")
                self._part = np.frombuffer(part, np.uint8)
            more = self._part[: count - at]
            taken[at : at + len(more)] = more
            self._part = self._part[len(more) :]
            at += len(more)
        return taken

    def header(self) -> _Header:
        """What the parts begin with."""
        length = int.from_bytes(self.take(4).tobytes(), "little")
        try:
            header = _header_decoder.decode(self.take(min(length, PART_BYTES)).tobytes())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"a snapshot begins with no header of a graph: {error}") from None
        if header.format != FORMAT:
            raise ValueError(f"a snapshot has format {header.format}, known is {FORMAT}: use the aikoryu that made it")
        return header

    def array(self, section: _Section) -> Array:
        """The array of a section."""
        dtype = np.dtype(section.dtype)
        count = int(np.prod(section.shape, dtype=np.int64))
        return self.take(count * dtype.itemsize).view(dtype).reshape(section.shape)

    def end(self) -> None:
        """There is nothing left."""
        if len(self._part) or next(self._parts, None):
            raise ValueError("a snapshot goes on after its end: it is of something else")


def _bytes_of(names: list[str]) -> Array:
    """Names have no control characters, so that a line is one."""
    return np.frombuffer("\n".join(names).encode(), np.uint8)


def _dtype(column: Tensor | Array) -> str:
    """NumPy's name; bf16 is kept by its bits."""
    name = str(column.dtype).removeprefix("torch.")
    return np.dtype("u2" if name == "bfloat16" else name).newbyteorder("<").str


def _blocks(column: Tensor | Array) -> Iterator[memoryview]:
    """The bytes of a column."""
    if isinstance(column, np.ndarray):
        yield np.ascontiguousarray(column).reshape(-1).view(np.uint8).data
        return
    import torch

    flat = bits(column).reshape(-1)
    for block in torch.split(flat, FETCHED_BYTES // flat.itemsize):
        yield block.cpu().numpy().view(np.uint8).data
