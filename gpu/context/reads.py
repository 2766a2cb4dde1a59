"""What is read from a graph: rows of many callers at once, where they ask for the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import msgspec
import numpy as np
import structlog

from ...bus.columns import Array, Column, pack_array, pack_strings, widen_bf16
from ...bus.errors import BadValue
from ...bus.frames import RowError, row_error
from ...bus.service import Held
from ..device import Device
from .calls import MOST_LINKS, Asked
from .said import vectors_of
from .state import GraphState
from .threads import lost_by
from .words import Spec, refused_vectors

Columns = dict[str, Column]

_log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Read:
    """A frame that reads.

    Attributes:
        call: `get`, `route`, `links` or `stats`.
        held: the frame.
        asked: what it asks.
        rows: (m,) int64, ascending, those of its rows that are read.
        names: m agents that it asks for.
        queries: (m, d) float32 that it routes.
        is_alive: somebody waits for it.
    """

    call: str
    held: Held
    asked: Asked
    rows: Array
    names: list[str] = field(default_factory=list)
    queries: Array | None = None
    is_alive: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, call: str, held: Held, spec: Spec, epoch: int) -> tuple[Read, list[RowError]]:
        """What a frame reads, and errors of rows that cannot be read.

        Args:
            call: as the attribute.
            held: the frame.
            spec: of the graph.
            epoch: of the log's last entry.

        Raises:
            BadColumn, BadParameter: the frame does not suit the operation.
            BadValue: a name is not UTF-8.
        """
        asked = Asked(call, held.request)
        refused: dict[int, str] = {}
        if call in ("get", "route"):
            # What is in the log now is applied before anything is read: an epoch that is there need not be waited for.
            later = (asked.array("min_epoch") > np.uint64(epoch)).nonzero()[0].tolist()
            reason = f"min_epoch is beyond {epoch}, the graph's last: name one that was answered since its log began"
            refused |= dict.fromkeys(later, reason)
        queries = vectors_of(asked, "query", spec) if call == "route" else None
        if queries is not None:
            refused |= refused_vectors(queries)
        read = cls(call, held, asked, np.delete(np.arange(asked.rows), list(refused)))
        if call in ("get", "links"):
            names = asked.texts("agent")
            read.names = [names[row] for row in read.rows.tolist()] if refused else names
        if queries is not None:
            queries = queries[read.rows]
            read.queries = widen_bf16(queries) if queries.dtype == np.uint16 else queries.astype(np.float32)
        return read, [row_error(BadValue(reason), row, 1) for row, reason in sorted(refused.items())]


def answers(reads: Sequence[Read], state: GraphState, age_s: float, more: Mapping[str, Any]) -> list[Columns | None]:
    """The columns of what each frame reads; None for one that makes this fail, while the device is well.

    Args:
        reads: frames.
        state: of the graph; used by this thread alone.
        age_s: since the newest window was applied, s.
        more: what `stats` tells besides the state's own figures.
    """
    found: dict[int, Columns | None] = {}
    groups: dict[tuple[str, Any], list[int]] = {}
    for number, read in enumerate(reads):
        groups.setdefault((read.call, read.asked.parameters), []).append(number)
    for (call, parameters), numbers in groups.items():
        answer = partial(_answered, call, parameters, state, age_s, more)
        parts = _those_that_can(answer, [reads[number] for number in numbers], state.device)
        found.update(zip(numbers, parts, strict=True))
    return [found[number] for number in range(len(reads))]


def _those_that_can(
    answer: Callable[[Sequence[Read]], list[Columns]], reads: Sequence[Read], device: Device
) -> Sequence[Columns | None]:
    """What frames that ask for the same are answered; each alone if that fails, because nothing was changed."""
    try:
        return answer(reads)
    except Exception as error:
        if lost_by(device, error) is not None:
            raise
        if len(reads) == 1:
            _log.exception("graph not read", call=reads[0].call, error=str(error))
            return [None]
    return [part for read in reads for part in _those_that_can(answer, [read], device)]


def _answered(
    call: str, parameters: Any, state: GraphState, age_s: float, more: Mapping[str, Any], reads: Sequence[Read]
) -> list[Columns]:
    match call:
        case "get":
            return _got(reads, state, parameters, age_s)
        case "route":
            return _routed(reads, state, parameters)
        case "links":
            return [_links(read, state) for read in reads]
        case _:
            told = msgspec.json.encode({**state.figures(), **more}).decode()
            return [{"stats": pack_strings([told] * len(read))} for read in reads]


def _got(reads: Sequence[Read], state: GraphState, parameters: Any, age_s: float) -> list[Columns]:
    names = [name for read in reads for name in read.names]
    known = state.read(names, parameters.what)
    rows = len(names)
    return _split(
        reads,
        {
            "epoch": np.full(rows, state.epoch, np.uint64),
            "vector": known.vectors,
            "version": known.versions,
            "residual": np.full(rows, state.residual, np.float32),
            "age_ms": np.full(rows, 1000 * age_s, np.float32),
        },
    )


def _routed(reads: Sequence[Read], state: GraphState, parameters: Any) -> list[Columns]:
    queries = np.concatenate([read.queries for read in reads if read.queries is not None])
    needs = np.concatenate([read.asked.array("needs")[read.rows] for read in reads])
    routed = state.route(queries, needs, parameters.k, parameters.load_weight, parameters.what, _nobody_leaves)
    epochs = np.full(len(queries), state.epoch, np.uint64)
    lists = ["\n".join(names) for names in routed.names]
    return _split(reads, {"epoch": epochs, "agents": lists, "scores": routed.scores})


def _links(read: Read, state: GraphState) -> Columns:
    heard, hearers = zip(*(state.links(name) for name in read.names), strict=True)
    packed = ([msgspec.msgpack.encode(each[:MOST_LINKS]) for each in side] for side in (heard, hearers))
    return {name: pack_strings(column) for name, column in zip(("heard", "hearers"), packed, strict=True)}


def _split(reads: Sequence[Read], columns: Mapping[str, Array | list[str]]) -> list[Columns]:
    """Each frame's rows of columns of all."""
    ends = accumulate((len(read) for read in reads), initial=0)
    return [
        {
            name: pack_array(column[first:end]) if isinstance(column, np.ndarray) else pack_strings(column[first:end])
            for name, column in columns.items()
        }
        for first, end in pairwise(ends)
    ]


def _nobody_leaves() -> None:
    """A search is short: who has gone meanwhile is not looked for."""
