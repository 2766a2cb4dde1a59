"""Recorded calls of an agent, asked again of the one under test."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..agents import Bus
from ..agents.agent import NAME
from ..bus.columns import Values
from ..bus.differences import Difference, Tolerance, compare
from ..bus.errors import BusError, Moved, NoWorker
from ..bus.exchange import Exchange, Outcome, Part
from ..bus.frames import RowError
from ..bus.pending import RowsFailed
from ..bus.recording import Recording

OWNER_S = 5.0  # that a key of the test's app may be without an owner
AGAIN_S = 0.02


@dataclass(slots=True)
class Replayed:
    """What came of a replay.

    Attributes:
        calls: that were made again.
        compared: of those, the ones whose recorded answer says something of the agent.
        differences: between then and now; none if all is as it was.
    """

    calls: int = 0
    compared: int = 0
    differences: list[Difference] = field(default_factory=list)


async def replay(bus: Bus, path: str | Path, agent: str | type) -> Replayed:
    """Make the recorded calls of one agent again, one request after the other, and compare the replies.

    Replies are compared as values, whatever the order of their fields; of errors the codes count. What was answered
    `busy`, or not in time, is asked again but not compared.

    Args:
        bus: of the test's app, which has the agent.
        path: a recording of `aikoryu record FILE --subjects 'agent.>'`.
        agent: its name, or its class.

    Raises:
        BadRecording: the file is none.
        ValueError: it has no call of the agent, or this is no name.
    """
    name = agent if isinstance(agent, str) else getattr(agent, NAME, "")
    bus.client.subjects.agent(name)  # for its check
    recording = Recording(path)
    handlers = [number for number, each in enumerate(recording.names) if each.startswith(f"agent.{name}.")]
    numbers = np.flatnonzero(np.isin(recording.operations, handlers)).tolist()
    if not numbers:
        raise ValueError(f"{path} has no call of agent {name!r}: it has {', '.join(recording.names) or 'none at all'}")
    replayed = Replayed()
    for number in numbers:
        exchange = recording.exchange(number)
        compared = compare(_legible(exchange.answer), _legible(await _ask(bus, exchange)), Tolerance())
        replayed.calls += exchange.asked.n
        replayed.compared += compared.rows
        replayed.differences += (Difference(number, exchange.operation, *found) for found in compared.found)
    return replayed


async def _ask(bus: Bus, exchange: Exchange) -> Outcome:
    """Ask again what was asked, for as long as its caller waited; of a key, when an owner is there."""
    asked = exchange.asked
    columns = {name: values for name, values in exchange.columns.items() if name != "trace"}
    patience_s = OWNER_S if "key" in columns else 0.0
    while True:
        errors: dict[int, BusError] = {}
        try:
            answer = await bus.client.call_many(
                exchange.operation, columns, timeout_s=asked.ttl_ms / 1000 or None, priority=asked.prio
            )
        except RowsFailed as failed:
            answer, errors = failed.columns, failed.errors
        unowned = len(errors) == asked.n and all(isinstance(each, (NoWorker, Moved)) for each in errors.values())
        if not unowned or patience_s <= 0:
            return _outcome(asked.n, answer, errors)
        await asyncio.sleep(AGAIN_S)
        patience_s -= AGAIN_S


def _outcome(rows: int, answer: Mapping[str, Any], errors: Mapping[int, BusError]) -> Outcome:
    """What came, as recordings have it."""
    outcome = Outcome(rows)
    outcome.add(Part([], {}, {}, [RowError(row, error.code, str(error)) for row, error in errors.items()]))
    at = [(row, 1) for row in range(rows) if row not in errors]
    values: dict[str, Values] = {name: [column[row] for row, _ in at] for name, column in answer.items()}
    outcome.add(Part(at, dict.fromkeys(values, "bin"), values, []))
    return outcome


def _legible(outcome: Outcome) -> Outcome:
    """The same with replies as JSON, in which a difference can be read and the order of fields is none."""
    replies = outcome.columns.get("reply")
    if replies is not None:
        outcome.columns["reply"] = ["" if reply is None else _json(reply) for reply in replies]
        outcome.types["reply"] = "utf8"
    return outcome


def _json(reply: Any) -> str:
    value = msgspec.msgpack.decode(reply) if isinstance(reply, bytes) else msgspec.json.decode(reply)
    return msgspec.json.encode(value, order="deterministic").decode()
