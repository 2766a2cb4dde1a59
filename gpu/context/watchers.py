"""The frames that wait for changes: rows of `watch`, answered when their agents have moved or their time is over."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

import numpy as np

from ...bus.columns import Array, pack_array
from ...bus.errors import BadValue, Busy
from ...bus.frames import row_error
from ...bus.service import Held, Service
from .calls import Asked
from .state import Due, Read
from .watching import Question, Watcher, Watching
from .words import refused_names

MOST_WAITING = 1 << 17
"""Rows that wait; beyond them callers are told to try again."""
ANSWERED_BEFORE_S = 0.05  # a caller's own time is over


@dataclass(slots=True)
class Look:
    """At whom the device's thread is to look.

    Attributes:
        is_due: whether anybody may be told something.
        changed, thresholds, intervals_ms: agents that are watched in another way from now on.
        fresh: agents whose watchers are answered with what holds now.
        rows: those watchers, a frame and a row each.
    """

    is_due: bool
    changed: list[str]
    thresholds: Array
    intervals_ms: Array
    fresh: list[str]
    rows: list[Row]

    def __bool__(self) -> bool:
        return self.is_due or bool(self.changed or self.fresh)


class Row(NamedTuple):
    """A row of a frame that watches: its place there, and what it has seen."""

    held: Held
    row: int
    cursor: int


@dataclass(slots=True)
class _Answers:
    """What is said to rows of one frame."""

    rows: list[int] = field(default_factory=list)
    changed: list[bool] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    vectors: list[Array] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)


class Watchers:
    """The watchers of one graph.

    Args:
        service: answers them.
        dimension: of the graph's vectors.
    """

    def __init__(self, service: Service, dimension: int) -> None:
        self._service = service
        self._nothing = np.zeros(dimension, np.float32)
        self._watching = Watching()
        self._fresh: list[tuple[str, Row]] = []
        self._waiting: dict[Held, dict[int, Watcher]] = {}
        self._count = 0

    def __len__(self) -> int:
        """Rows that wait."""
        return self._count

    def accept(self, held: Held, now: float) -> None:
        """Let the rows of a frame wait, or be answered soon.

        Raises:
            BadColumn, BadParameter, BadValue: the frame does not suit the operation.
            Busy: too many wait.
        """
        asked = Asked("watch", held.request)
        if max(self._count, len(self._watching)) + asked.rows > MOST_WAITING:
            told = f"{self._count} rows wait for changes of {len(self._watching)} agents here"
            raise Busy(f"{told}: watch fewer, or ask again", 1.0)
        names = asked.texts("agent")
        thresholds, intervals, cursors = (
            asked.array(name).tolist() for name in ("threshold", "min_interval_ms", "cursor")
        )
        refused = refused_names(names)
        refused |= {row: "a threshold is at least 0" for row, threshold in enumerate(thresholds) if not threshold >= 0}
        if refused:
            errors = [row_error(BadValue(reason), row, 1) for row, reason in sorted(refused.items())]
            self._service.answer(held, [], {}, errors)
        until = min(now + asked.parameters.wait_ms / 1000, held.deadline - ANSWERED_BEFORE_S)
        for row, (name, threshold, interval_ms, cursor) in enumerate(
            zip(names, thresholds, intervals, cursors, strict=True)
        ):
            if row in refused:
                continue
            question = Question(name, threshold, interval_ms / 1000, cursor, until)
            asker = Row(held, row, cursor)
            watcher = self._watching.ask(question, asker, now)
            if watcher is None:
                self._fresh.append((name, asker))
            else:
                self._waiting.setdefault(held, {})[row] = watcher
                self._count += 1

    def withdraw(self, held: Held, rows: list[int]) -> None:
        """Their caller waits no more; no rows named: for none of the frame's."""
        waiting = self._waiting.get(held, {})
        gone = [row for row in rows or list(waiting) if row in waiting]
        for row in gone:
            self._watching.withdraw(self._taken(held, row))
        self._service.drop(held, len(gone))

    def look(self, now: float, has_news: bool) -> Look:
        """At whom to look next.

        Args:
            now: s.
            has_news: windows are being applied.
        """
        names = sorted(self._watching.changed)
        self._watching.changed.clear()
        limits = [self._watching.limits(name) for name in names]
        is_due = self._watching.is_look_due(now) or bool(names) or (has_news and len(self._watching) > 0)
        fresh, self._fresh = self._fresh, []
        return Look(
            is_due,
            names,
            np.array([threshold for threshold, _ in limits], np.float32),
            np.rint([1000 * interval for _, interval in limits]).astype(np.int64),
            [name for name, _ in fresh],
            [row for _, row in fresh],
        )

    def answer(self, look: Look, due: Due | None, seen: Read | None, epoch: int, now: float) -> None:
        """Tell those at whom the thread has looked."""
        answers: dict[Held, _Answers] = {}
        if due is not None and due.names:
            told = self._watching.told(due.names, epoch, now)
            numbers = (due.versions.tolist(), due.moved.tolist())
            for watchers, vector, version, moved in zip(told, due.vectors, *numbers, strict=True):
                for watcher in watchers:
                    self._say(answers, watcher, True, epoch, version, vector, moved)
        if seen is not None:
            for name, row, vector, version in zip(
                look.fresh, look.rows, seen.vectors, seen.versions.tolist(), strict=True
            ):
                # All are told, or those who wait would be told of the next move from where they have never been.
                for watcher in self._watching.told([name], epoch, now)[0]:
                    self._say(answers, watcher, True, epoch, version, vector, 0.0)
                self._say_row(answers, row, True, epoch, version, vector, 0.0)
        self._send(answers)

    def answer_ended(self, now: float) -> None:
        """Tell those who have waited long enough that nothing has changed."""
        answers: dict[Held, _Answers] = {}
        for watcher in self._watching.ended(now):
            self._say(answers, watcher, False, watcher.question.cursor, 0, self._nothing, 0.0)
        self._send(answers)

    def send_away(self, look: Look | None = None) -> None:
        """Have all ask the next owner, also those at whom a thread has looked in vain."""
        answers: dict[Held, _Answers] = {}
        for watcher in [watcher for rows in self._waiting.values() for watcher in rows.values()]:
            self._watching.withdraw(watcher)
            self._say(answers, watcher, False, watcher.question.cursor, 0, self._nothing, 0.0)
        for row in [*(look.rows if look is not None else ()), *(row for _, row in self._fresh)]:
            self._say_row(answers, row, False, row.cursor, 0, self._nothing, 0.0)
        self._fresh = []
        self._send(answers)

    @property
    def next_at(self) -> float:
        """When there is something to do here without news, s; infinite for never."""
        return -inf if self._fresh else self._watching.next_at

    def _say(self, answers: dict[Held, _Answers], watcher: Watcher, *said: Any) -> None:
        row: Any = watcher.row
        self._taken(row.held, row.row)
        self._say_row(answers, row, *said)

    def _say_row(
        self,
        answers: dict[Held, _Answers],
        row: Row,
        changed: bool,
        epoch: int,
        version: int,
        vector: Array,
        moved: float,
    ) -> None:
        to = answers.setdefault(row.held, _Answers())
        to.rows.append(row.row)
        to.changed.append(changed)
        to.epochs.append(epoch)
        to.versions.append(version)
        to.vectors.append(vector)
        to.moved.append(moved)

    def _send(self, answers: dict[Held, _Answers]) -> None:
        for held, said in answers.items():
            columns = {
                "changed": pack_array(np.array(said.changed)),
                "epoch": pack_array(np.array(said.epochs, np.uint64)),
                "version": pack_array(np.array(said.versions, np.uint64)),
                "vector": pack_array(np.stack(said.vectors).astype(np.float32)),
                "moved": pack_array(np.array(said.moved, np.float32)),
            }
            self._service.answer(held, [(row, 1) for row in said.rows], columns, [])

    def _taken(self, held: Held, row: int) -> Watcher:
        rows = self._waiting[held]
        watcher = rows.pop(row)
        if not rows:
            del self._waiting[held]
        self._count -= 1
        return watcher
