"""agents.assign: which agent takes each task, of all the tasks that came in the same moment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np

from ...bus.columns import Schema
from ...bus.errors import BadColumn, BadParameter
from ..auction import Auction
from ..batch import Batch
from ..device import Device
from ..operation import Operation
from ..residents import Handle, Residents
from ..shortlist import LONGEST, Agents, Tasks, lengths, shortlist
from ..signature import Signature
from .tensors import field_of

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("f2", "bf16", "f4")
MOST_LISTED = 64
MOST_AGENTS = 1 << 24
LARGEST_WEIGHT = 1e9


class AssignParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whom the tasks go to: resident tensors of one group, a row an agent.

    Attributes:
        vectors: (n, d) f2, bf16 or f4, as long as the tasks' queries.
        capacity: (n,) u4, how many of the tasks each agent can take; if absent, one.
        capabilities: (n,) u8, a bit for each; needed where tasks say what they need.
        load: (n,) f4; if absent, 0.
        k: agents on the shortlist of each task.
        load_weight: what a load of 1 counts, in units of similarity.
    """

    vectors: Handle
    capacity: Handle | None = None
    capabilities: Handle | None = None
    load: Handle | None = None
    k: Annotated[int, msgspec.Meta(ge=1, le=MOST_LISTED)] = 16
    load_weight: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_WEIGHT)] = 1.0

    @property
    def handles(self) -> dict[str, Handle]:
        """Those that are there, by name."""
        named = {
            "vectors": self.vectors,
            "capacity": self.capacity,
            "capabilities": self.capabilities,
            "load": self.load,
        }
        return {name: handle for name, handle in named.items() if handle is not None}


class Assign(Operation):
    """Gives tasks to agents, so that the sum of similarities less loads is as great as capacities allow.

    A row is a task; the rows of a batch, whoever sent them, are assigned together. Nothing is kept: what an agent can
    take and how busy it is are what the tensors say.
    """

    name = "agents.assign"
    signature = Signature(
        {"query": "T[d]", "need": "u8"}, {"agent": "i4", "score": "f4"}, {"T": "f2|bf16|f4"}, ("need",)
    )
    parameters = AssignParameters
    help = "The agent for each task: a row of `vectors`, or -1 if those that suit it have no room."
    max_rows = 4096
    endings = (".*",)

    def __init__(self, residents: Residents) -> None:
        self.residents = residents

    def load(self, device: Device) -> None:
        """Find what the engine before has left."""
        self.residents.open(device)

    def outputs(self, schema: Schema, parameters: AssignParameters) -> Schema:
        """As the signature says, of candidates that suit the tasks."""
        answer = super().outputs(schema, parameters)
        columns = dict(schema)
        _check_candidates(parameters)
        if columns["query"].shape != parameters.vectors.s[1:]:
            raise BadColumn(
                f"column 'query' has {columns['query'].shape[0]} numbers, the agents' vectors have "
                f"{parameters.vectors.s[1]}: send tasks and agents from one model"
            )
        if "need" in columns and parameters.capabilities is None:
            raise BadColumn("column 'need': the candidates have no `capabilities`: put them, or leave `need` out")
        return answer

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """List the best agents of each task, then let the tasks bid for them; rows of callers that went do not."""
        import torch

        query = batch.tensor("query")
        agent = torch.full((batch.rows,), -1, dtype=torch.int32, device=query.device)
        score = torch.full((batch.rows,), -math.inf, dtype=torch.float32, device=query.device)
        sound = (lengths(query) <= LONGEST).cpu().numpy()
        for row in np.flatnonzero(~sound).tolist():
            batch.reject(row, "bad_value", "the query is not finite, or longer than 2^48: send an embedding")
        chosen = np.flatnonzero(sound & batch.alive)
        parameters: AssignParameters = batch.parameters
        with self.residents.use(parameters.handles) as tensors:
            if len(chosen):
                rows = torch.from_numpy(chosen).to(query.device)
                agents = _agents(tensors, parameters.load_weight)
                found = shortlist(_tasks(batch, query, chosen, rows), agents, parameters.k, batch.checkpoint)
                place = Auction(*found, agents.capacity).run(batch.checkpoint)
                got = place >= 0
                where = place.clamp(min=0)[:, None]
                agent[rows] = torch.where(got, found.agents.gather(1, where).squeeze(1), -1).int()
                score[rows] = torch.where(got, found.utilities.gather(1, where).squeeze(1), -math.inf)
        return {"agent": agent, "score": score}


def _check_candidates(parameters: AssignParameters) -> None:
    """Raise BadParameter unless dtypes and shapes are those of candidates."""
    for name, handle in parameters.handles.items():
        field_of(handle.t, handle.s)
        dtypes = {"vectors": FLOATS, "capacity": ("u4",), "capabilities": ("u8",), "load": ("f4",)}[name]
        if handle.t not in dtypes:
            raise BadParameter(f"{name} is {handle.t}: put it as {' or '.join(dtypes)}")
        shape = parameters.vectors.s if name == "vectors" else parameters.vectors.s[:1]
        if handle.s != shape or len(parameters.vectors.s) != 2:
            raise BadParameter(f"{name} has shape {list(handle.s)}: put vectors (n, d), and the rest (n,)")
    if parameters.vectors.s[0] > MOST_AGENTS:
        raise BadParameter(f"tensors of {parameters.vectors.s[0]} agents: use at most {MOST_AGENTS}, or several")


def _tasks(batch: Batch, query: Tensor, chosen: np.ndarray[Any, Any], rows: Tensor) -> Tasks:
    """The rows that are assigned, with what they need."""
    import torch

    if "need" not in dict(batch.schema):
        nothing = torch.zeros(len(rows), dtype=torch.int64, device=query.device)
        return Tasks(query[rows], nothing, nothing[:0])
    union = int(np.bitwise_or.reduce(batch["need"][chosen]))
    bits = torch.tensor([bit for bit in range(64) if union >> bit & 1], dtype=torch.int64, device=query.device)
    return Tasks(query[rows], batch.tensor("need").view(torch.int64)[rows], bits)


def _agents(tensors: Mapping[str, Tensor], load_weight: float) -> Agents:
    """The candidates in the types that the search has, with what is absent."""
    import torch

    vectors = tensors["vectors"]
    ones = torch.ones(len(vectors), dtype=torch.int64, device=vectors.device)
    capacity, capabilities, load = (tensors.get(name) for name in ("capacity", "capabilities", "load"))
    return Agents(
        vectors,
        # torch computes little with unsigned numbers
        ones if capacity is None else capacity.view(torch.int32).long() & 0xFFFFFFFF,
        ones if capabilities is None else capabilities.view(torch.int64),
        torch.zeros_like(ones, dtype=torch.float32) if load is None else load_weight * load,
    )


def operations(residents: Residents) -> list[Operation]:
    """The operation on the given residents."""
    return [Assign(residents)]
