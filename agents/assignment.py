"""Tasks for agents: who gets which, decided by a worker for all tasks that come in the same moment."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..bus.client import Client
from ..bus.errors import BadParameter
from ..bus.subjects import partition
from .tensors import Handle


@dataclass(frozen=True)
class Candidates:
    """The agents that tasks may go to: tensors of one group, put by `bus.matrix.put`, a row an agent.

    Agents come, go and change as a tensor is put again with `replace`; the handles stay.

    Attributes:
        vectors: (n, d) float16, bfloat16 or float32, what each agent is for, of length 1 if similarity is the cosine.
        capacity: (n,) uint32, how many tasks each can take now; if absent, one.
        capabilities: (n,) uint64, a bit for each capability; if absent, tasks cannot say what they need.
        load: (n,) float32, how busy each is; if absent, 0.
    """

    vectors: Handle
    capacity: Handle | None = None
    capabilities: Handle | None = None
    load: Handle | None = None


class Assigned(NamedTuple):
    """The agent that takes a task.

    Attributes:
        agent: its row of the candidates' tensors, -1 if all that suit the task are full.
        score: similarity less weighted load, -inf without an agent.
    """

    agent: int
    score: float


class AllAssigned(NamedTuple):
    """The agents that take m tasks.

    Attributes:
        agents: (m,) int32, as `Assigned.agent`.
        scores: (m,) float32, as `Assigned.score`.
    """

    agents: NDArray[np.int32]
    scores: NDArray[np.float32]


class Assignment:
    """Asks who takes a task.

    Tasks that reach the worker in the same moment, whoever asks, are assigned together: to the agents that suit them
    best, none to more than its capacity. Nothing is kept: tasks that come later may go to the same agents until their
    tensors say that these have no room.

    Args:
        client: asks the workers.
        partitions: as the settings' `bus.partitions`, the same for everybody on the bus.
    """

    def __init__(self, client: Client, partitions: int) -> None:
        self._client = client
        self._partitions = partitions

    async def assign(
        self,
        query: ArrayLike,
        candidates: Candidates,
        *,
        need: int = 0,
        k: int = 16,
        load_weight: float = 1.0,
        timeout_s: float | None = None,
    ) -> Assigned:
        """The agent for one task.

        Args:
            query: (d,) float16 or float32, what the task is about.
            candidates: whom it may go to.
            need: bits of the capabilities that an agent must have.
            k: how many of the best agents are looked at, 1 to 64.
            load_weight: what a load of 1 counts, in units of similarity.
            timeout_s: how long to wait, s.

        Raises:
            BadColumn: the query is not as long as the agents' vectors, or there is a need but no capabilities.
            BadParameter: a tensor is not of the dtype and shape that it must have, or of another group.
            BadValue: the query is not finite.
            NoTensor: a tensor of the candidates is not there any more.
        """
        row: dict[str, Any] = {"query": _as_query(query)}
        if need:
            row["need"] = np.uint64(need)
        operation, parameters = self._asked(candidates, k, load_weight)
        answer = await self._client.call(operation, row, parameters, timeout_s=timeout_s, idempotent=True)
        return Assigned(int(answer["agent"]), float(answer["score"]))

    async def assign_many(
        self,
        queries: ArrayLike,
        candidates: Candidates,
        *,
        needs: ArrayLike | None = None,
        k: int = 16,
        load_weight: float = 1.0,
        timeout_s: float | None = None,
    ) -> AllAssigned:
        """The agents for m tasks. They are assigned together as far as they reach the worker in one batch.

        Args:
            queries: (m, d), as of `assign`.
            candidates, k, load_weight, timeout_s: as for `assign`.
            needs: (m,) uint64, as `need`.

        Raises:
            RowsFailed: some queries are not finite; it carries the others' answers.
            BadColumn, BadParameter, NoTensor: as `assign`.
        """
        columns: dict[str, Any] = {"query": _as_query(queries)}
        if needs is not None:
            columns["need"] = np.asarray(needs, np.uint64)
        operation, parameters = self._asked(candidates, k, load_weight)
        answer = await self._client.call_many(operation, columns, parameters, timeout_s=timeout_s, idempotent=True)
        return AllAssigned(answer["agent"], answer["score"])

    def _asked(self, candidates: Candidates, k: int, load_weight: float) -> tuple[str, dict[str, Any]]:
        """The operation as the worker serves it that keeps the candidates, and its parameters.

        Raises:
            BadParameter: tensors of the candidates are of several groups.
        """
        parameters: dict[str, Any] = {"k": k, "load_weight": load_weight}
        for field in fields(candidates):
            handle: Handle | None = getattr(candidates, field.name)
            if handle is None:
                continue
            if handle.group != candidates.vectors.group:
                raise BadParameter(
                    f"{field.name} lies in group {handle.group}, vectors in {candidates.vectors.group}: put both in one"
                )
            parameters[field.name] = {"key": handle.key, "t": handle.dtype, "s": handle.shape}
        return f"agents.assign.{partition(candidates.vectors.group, self._partitions)}", parameters


def _as_query(given: ArrayLike) -> NDArray[Any]:
    """As it is, but numbers that are no array's as float32."""
    return given if isinstance(given, np.ndarray) else np.asarray(given, np.float32)
