"""What can be asked of a graph: the operations of `context`, their columns and parameters.

Their subjects end in the graph's name, on which only its owner listens; `open` and `move` are asked of any keeper.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from ...bus.columns import FIXED, Array, Column, Schema, check, unpack
from ...bus.errors import BadParameter
from ...bus.frames import Request, decode_parameters
from ..operation import NoParameters
from ..signature import Signature

SYSTEM = "context"
MOST_DIMENSIONS = 8192
MOST_ROUTES = 256
MOST_LINKS = 4096
"""Edges that one `links` tells."""
LARGEST_LOAD_WEIGHT = 1e30
LONGEST_WAIT_MS = 60_000

What = Literal["own", "blended"]

_GRAPH = re.compile(r"[A-Za-z0-9_-]{1,64}")

_VECTOR = {"V": "f2|bf16|f4"}


class Reading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of `get`: which of an agent's contexts."""

    what: What = "blended"


class Routing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of `route`: how many agents, what a load of 1 takes off a score, and which of their contexts count."""

    k: Annotated[int, msgspec.Meta(ge=1, le=MOST_ROUTES)] = 16
    load_weight: float = 0.0
    what: What = "blended"

    def __post_init__(self) -> None:
        if not abs(self.load_weight) <= LARGEST_LOAD_WEIGHT:
            raise ValueError(f"load_weight is {self.load_weight:g}: use up to {LARGEST_LOAD_WEIGHT:g}")


class Watching(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of `watch`: the longest wait for a change, ms."""

    wait_ms: Annotated[int, msgspec.Meta(ge=0, le=LONGEST_WAIT_MS)] = 10_000


@dataclass(frozen=True)
class Call:
    """One operation.

    Attributes:
        signature: its columns.
        help: one line for callers.
        parameters: a frozen msgspec Struct.
    """

    signature: Signature
    help: str
    parameters: type[msgspec.Struct] = NoParameters

    def metadata(self) -> dict[str, str]:
        """What discovery tells of it."""
        signature = self.signature
        return {
            "inputs": str(signature),
            "outputs": ", ".join(f"{name}: {spec}" for name, spec in signature.outputs.items()),
            "types": ", ".join(f"{letter}: {choice}" for letter, choice in signature.types.items()),
            "parameters": ", ".join(field.name for field in msgspec.structs.fields(self.parameters)),
            "help": self.help,
        }


OF_A_GRAPH = {
    "put": Call(
        Signature(
            {
                **{"agent": "utf8", "writer": "u8", "version": "u8", "vector": "V[d]"},
                **{"ttl_ms": "i8", "capabilities": "u8", "load": "f4"},
            },
            {"epoch": "u8", "applied": "bool", "version": "u8"},
            _VECTOR,
            optional=("ttl_ms", "capabilities", "load"),
        ),
        "What agents know, as a vector each; the word of the greatest version holds.",
    ),
    "link": Call(
        Signature(
            {
                **{"source": "utf8", "target": "utf8", "weight": "f4"},
                **{"writer": "u8", "version": "u8", "ttl_ms": "i8"},
            },
            {"epoch": "u8", "applied": "bool"},
            optional=("ttl_ms",),
        ),
        "Lets targets hear sources; a weight of 0 ends that.",
    ),
    "get": Call(
        Signature(
            {"agent": "utf8", "min_epoch": "u8"},
            {"epoch": "u8", "vector": "f4[d]", "version": "u8", "residual": "f4", "age_ms": "f4"},
            optional=("min_epoch",),
        ),
        "What agents know themselves, or with what reaches them.",
        Reading,
    ),
    "route": Call(
        Signature(
            {"query": "V[d]", "needs": "u8", "min_epoch": "u8"},
            {"epoch": "u8", "agents": "utf8", "scores": "f4[k]"},
            _VECTOR,
            optional=("needs", "min_epoch"),
        ),
        "The agents whose contexts are most like a vector.",
        Routing,
    ),
    "watch": Call(
        Signature(
            {"agent": "utf8", "threshold": "f4", "min_interval_ms": "u4", "cursor": "u8"},
            {"changed": "bool", "epoch": "u8", "version": "u8", "vector": "f4[d]", "moved": "f4"},
        ),
        "Waits until what reaches an agent has moved by more than a threshold.",
        Watching,
    ),
    "links": Call(Signature({"agent": "utf8"}, {"heard": "bin", "hearers": "bin"}), "Whom an agent hears, and who it."),
    "stats": Call(Signature({"unused": "bool"}, {"stats": "utf8"}), "Figures of the graph, a JSON object."),
    "yield": Call(Signature({"token": "u8"}, {"epoch": "u8"}), "The keeper that follows asks the owner to end."),
}
OF_ANY_KEEPER = {
    "open": Call(
        Signature(
            {"graph": "utf8", "dimension": "u4", "alpha": "f4", "epsilon": "f4"},
            {"epoch": "u8", "dimension": "u4", "alpha": "f4", "epsilon": "f4"},
        ),
        "Sees to it that a graph has an owner, and makes it if it has a dimension.",
    ),
    "move": Call(Signature({"graph": "utf8"}, {"moved": "bool"}), "Takes a graph from an owner that is about to stop."),
}


def is_graph(name: str) -> bool:
    """Whether a graph may be called so: it ends subjects."""
    return _GRAPH.fullmatch(name) is not None


@lru_cache(maxsize=4096)
def _checked(call: str, schema: Schema, parameters: bytes) -> Any:
    """The parameters of a call whose columns suit it; what a frame's types amount to is worked out once."""
    known = OF_A_GRAPH.get(call) or OF_ANY_KEEPER[call]
    known.signature.check(schema)
    try:
        return msgspec.convert(decode_parameters(msgspec.Raw(parameters)), known.parameters)
    except msgspec.ValidationError as error:
        names = ", ".join(field.name for field in msgspec.structs.fields(known.parameters)) or "none"
        raise BadParameter(f"{error}: {SYSTEM}.{call} takes these parameters: {names}") from None


class Asked:
    """A frame whose columns and parameters suit its operation.

    Attributes:
        rows: how many.
        parameters: decoded.

    Raises:
        BadColumn, BadParameter: they do not.
    """

    def __init__(self, call: str, request: Request) -> None:
        columns = request.cols
        schema = tuple((name, check(column, request.n, name)) for name, column in sorted(columns.items()))
        self.rows = request.n
        self.parameters = _checked(call, schema, bytes(request.p))
        self._columns = columns

    def column(self, name: str) -> Column:
        """A column as it came."""
        return self._columns[name]

    def array(self, name: str, absent: str = "u8") -> Array:
        """A column of numbers; of one left out zeros of the dtype `absent`."""
        column = self._columns.get(name)
        if column is None:
            return np.zeros(self.rows, FIXED[absent])
        return np.frombuffer(column.d, FIXED[column.t]).reshape(column.s or (self.rows,))

    def texts(self, name: str) -> list[str]:
        """A column of text.

        Raises:
            BadValue: it is not UTF-8.
        """
        values: Any = unpack(self._columns[name], self.rows)
        return list(values)
