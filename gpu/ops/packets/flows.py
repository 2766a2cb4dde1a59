"""packets.flows: the flows of packets that come chunk after chunk, kept in a named table of the engine's.

A call's subject ends in the partition of the table's name, so that all chunks of a table reach the worker that has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from ....bus.columns import Array, Schema
from ....bus.errors import BadParameter, BadValue, BusError, Busy, OutOfStep
from ....netio.flow_cuts import BadTable, Timeouts
from ....netio.flow_table import CAPACITY
from ....netio.flow_wire import MOST_ANSWER_BYTES
from ....netio.flows import Flows as EndedFlows
from ...batch import Batch
from ...blobs import Blobs
from ...device import Device
from ...operation import Operation
from ...packets.flow_senders import Answer
from ...packets.flow_store import TableSpec
from ...packets.flow_tables import MOST_FLOWS, FlowTables, HeldTable
from ...packets.frames import ETHERNET, Frames
from ...signature import Signature
from .dissect import Link

MOST_CHUNKS = 8
"""Of a batch: the flows of all of them must have room in the answer."""
MOST_PIECES = 256
"""A table takes no more packets at once than it has room for flows: a chunk may be so many times that."""
NOTHING = Answer(b"", 0, 0, 0, 0)


class Flows(Operation):
    """Gives chunks of packets to a table, and answers with the flows that have ended.

    A row is a chunk: `frames`, the bytes of its packets one after the other; `lengths`, u4 each; `times`, i8 each, ns
    since 1970; `wire`, u4 each, and `links`, u2 each, or nothing where they say nothing. `source` is a number of the
    sender's own, and `number` counts its chunks from 1. After the packets, `now_ns` ends what is idle by then, unless
    it is 0, and `end` ends all flows. `forget`, of whatever number, does away with the table.

    A chunk is applied once: sent again it gets the answer it had. One that does not follow the chunk before it is
    refused with the number expected, as after an engine was lost, whose tables go on as they were written down last.
    Answers name the last chunk of the sender that is; whoever keeps the later ones loses nothing.
    """

    class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """What names a flow; see `netio.flow_key.KeyChoice`."""

        header: Literal["inner", "outer"] = "inner"
        vlan: bool = False
        tunnel: bool = False

    class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """What the rows of a batch have in common.

        Attributes:
            table: its name, in whose partition the call's subject ends.
            key: what names a flow.
            idle_s, active_s: when flows end; None for never.
            capacity: most flows at a time.
            link: link type of packets that come without `links`.
            answer_bytes: of flows in an answer, which must find room in the server's `max_payload`.
        """

        table: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
        key: Flows.Key = msgspec.field(default_factory=lambda: Flows.Key())
        idle_s: float | None = 120.0
        active_s: float | None = 1800.0
        capacity: Annotated[int, msgspec.Meta(ge=1, le=MOST_FLOWS)] = CAPACITY
        link: Link = ETHERNET
        answer_bytes: Annotated[int, msgspec.Meta(ge=1, le=MOST_ANSWER_BYTES)] = 960 << 10

        @property
        def spec(self) -> TableSpec:
            """The table that they describe."""
            key = self.key
            return TableSpec(key.header, key.vlan, key.tunnel, self.idle_s, self.active_s, self.capacity)

    name = "packets.flows"
    signature = Signature(
        {
            **{"source": "u8", "number": "u8", "frames": "bin", "lengths": "bin", "times": "bin"},
            **{"wire": "bin", "links": "bin", "now_ns": "i8", "end": "bool", "forget": "bool"},
        },
        {"flows": "bin", "count": "u4", "left": "u8", "open": "u8", "ignored": "u8", "saved": "u8", "trouble": "utf8"},
        optional=("wire", "links", "now_ns", "end", "forget"),
    )
    parameters = Parameters
    pure = False
    help = "The flows that chunks of packets end, kept in the table `table`; docs/flows.md tells the columns."
    max_rows = MOST_CHUNKS
    endings = (".*",)

    def __init__(self, tables: FlowTables) -> None:
        self._tables = tables

    def load(self, device: Device) -> None:
        """Find what the engine before has left."""
        self._tables.open(device)

    def relieve(self) -> None:
        """Let go of the tables, which are files then."""
        self._tables.relieve()

    def outputs(self, schema: Schema, parameters: Parameters) -> Schema:
        """As the signature says, with time-outs that are some."""
        try:
            Timeouts(parameters.idle_s, parameters.active_s)
        except BadTable as error:
            raise BadParameter(str(error)) from None
        return self.signature.bind(schema)

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Give each chunk to the table."""
        parameters: Flows.Parameters = batch.parameters
        held = self._tables.held(parameters.table, parameters.spec)
        answers: list[Answer] = [NOTHING] * batch.rows
        waiting = [row for row in range(batch.rows) if batch.alive[row]]
        try:
            # Those that came too early, through another front, may follow by now.
            while waiting:
                early = [row for row in waiting if not self._answer(held, batch, row, answers)]
                if len(early) == len(waiting):
                    break
                waiting = early
        except BaseException:
            self._tables.lose(held)
            raise
        if any(batch.alive[row] and _says(batch, "forget", row) for row in range(batch.rows)):
            self._tables.forget(held)
        else:
            self._tables.keep(held)
        return {
            "flows": [answer.flows for answer in answers],
            **{
                name: np.array([getattr(answer, name) for answer in answers], dtype)
                for name, dtype in (("count", np.uint32), ("left", np.uint64), ("open", np.uint64))
            },
            "ignored": np.array([answer.ignored for answer in answers], np.uint64),
            "saved": np.array([held.written(int(source)) for source in batch["source"]], np.uint64),
            "trouble": [held.trouble] * batch.rows,
        }

    def _answer(self, held: HeldTable, batch: Batch, row: int, answers: list[Answer]) -> bool:
        """Answer a row; false if others must come before it."""
        try:
            answers[row] = self._applied(held, batch, row)
        except BusError as error:
            batch.reject(row, error.code, str(error))
            return not isinstance(error, OutOfStep)
        batch.errors.pop(row, None)
        return True

    def _applied(self, held: HeldTable, batch: Batch, row: int) -> Answer:
        if _says(batch, "forget", row):
            return NOTHING
        number = int(batch["number"][row])
        source = int(batch["source"][row])
        sender = held.sender(source)
        kept = sender.kept(number)
        if kept is not None:
            return kept
        frames, times = _chunk(batch, row, batch.parameters.link)
        capacity = held.spec.capacity
        most = MOST_PIECES * capacity
        if len(frames) > most:
            raise BadValue(
                f"{len(frames)} packets at once for a table of {capacity} flows: send at most {most}, "
                "or name a larger capacity"
            )
        now_ns = int(batch["now_ns"][row]) if "now_ns" in dict(batch.schema) else 0
        is_end = _says(batch, "end", row)
        # A sender alone never has so many left; one of several may end flows faster than it fetches them.
        if is_end and sender.left > 2 * capacity:
            raise Busy(f"{sender.left} flows that have ended are left: fetch them with chunks without packets first")
        ended = [self._tables.path.update(held.table, frames, times)] if len(frames) else []
        if now_ns and sender.left <= capacity:
            ended.append(held.table.expire(now_ns))
        if is_end:
            ended.append(held.table.flush())
        room_bytes = batch.parameters.answer_bytes
        return held.answer(source, EndedFlows.joined(ended), len(frames), is_end, room_bytes)


def _says(batch: Batch, name: str, row: int) -> bool:
    """Whether an optional column is there and true."""
    return name in dict(batch.schema) and bool(batch[name][row])


def _chunk(batch: Batch, row: int, link: int) -> tuple[Frames, Array]:
    """The packets of a row, and their times.

    Raises:
        BadValue: the lengths of its columns do not agree.
    """
    there = dict(batch.schema)
    data = _values(batch, "frames", row, "u1")
    lengths = _values(batch, "lengths", row, "<u4")
    times = _values(batch, "times", row, "<i8")
    wire = _values(batch, "wire", row, "<u4") if "wire" in there else lengths[:0]
    links = _values(batch, "links", row, "<u2") if "links" in there else lengths[:0]
    if len({len(lengths), len(times), len(wire) or len(lengths), len(links) or len(lengths)}) > 1:
        raise BadValue("the columns of this chunk are of different numbers of packets: send one value for each")
    offsets = np.zeros(len(lengths) + 1, np.uint64)
    np.cumsum(lengths, out=offsets[1:])
    if int(offsets[-1]) != len(data):
        raise BadValue(f"`lengths` come to {int(offsets[-1])} bytes, `frames` has {len(data)}: send what they say")
    blobs = Blobs(data, offsets.astype(np.uint32))
    return Frames(blobs, links if len(links) else None, wire if len(wire) else lengths, link), times


def _values(batch: Batch, name: str, row: int, dtype: str) -> Array:
    """The numbers that a row's bytes hold.

    Raises:
        BadValue: they hold no whole number of them.
    """
    blobs = batch.packed(name)
    part = blobs.data[blobs.offsets[row] : blobs.offsets[row + 1]]
    size = np.dtype(dtype).itemsize
    if len(part) % size:
        raise BadValue(f"column {name!r} has {len(part)} bytes, which are no numbers of {size}")
    # Copied where it is not aligned.
    return part.view(dtype) if part.ctypes.data % size == 0 else part.copy().view(dtype)
