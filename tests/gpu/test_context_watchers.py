"""Frames that wait for changes, and what each of their rows is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aikoryu.bus.columns import Array, Values, pack, unpack
from aikoryu.bus.errors import Busy
from aikoryu.bus.frames import Request, RowError, Run, decode_request, encode
from aikoryu.gpu.context import watchers as module
from aikoryu.gpu.context.state import Due, Read
from aikoryu.gpu.context.watchers import Look, Watchers


class Frame:
    """What a service would hold."""

    def __init__(self, request: Request, deadline: float = float("inf")) -> None:
        self.request = request
        self.deadline = deadline
        self.open = request.n
        self.told: dict[int, dict[str, Any]] = {}
        self.errors: dict[int, str] = {}


class FakeService:
    """Answers into the frames."""

    def answer(self, held: Frame, at: list[Run], columns: dict[str, Any], errors: list[RowError]) -> None:
        rows = [row for first, count in at for row in range(first, first + count)]
        values = {name: unpack(column, len(rows)) for name, column in columns.items()}
        for place, row in enumerate(rows):
            assert row not in held.told
            held.told[row] = {name: column[place] for name, column in values.items()}
        held.errors.update({error.row: error.msg for error in errors})
        held.open -= len(rows) + len(errors)

    def drop(self, held: Frame, rows: int) -> None:
        held.open -= rows


def frame(
    names: list[str], *, cursors: list[int] | None = None, threshold: float = 0.5, wait_ms: int = 10_000, **more: Any
) -> Frame:
    count = len(names)
    columns: dict[str, Values] = {
        "agent": names,
        "threshold": np.full(count, threshold, np.float32),
        "min_interval_ms": np.full(count, 20, np.uint32),
        "cursor": np.array(cursors or [0] * count, np.uint64),
    }
    raw: Any = {"v": 1, "n": count, "p": {"wait_ms": wait_ms}}
    raw["cols"] = {name: pack(values) for name, values in columns.items()}
    return Frame(decode_request(encode(raw)), **more)


@pytest.fixture
def watchers() -> Watchers:
    service: Any = FakeService()
    return Watchers(service, 2)


def accept(watchers: Watchers, asked: Any, now: float = 0.0) -> None:
    watchers.accept(asked, now)


def due(**moved: float) -> Due:
    count = len(moved)
    vectors = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    return Due(list(moved), vectors, np.full(count, 9, np.uint64), np.array(list(moved.values()), np.float32))


def read(count: int) -> Read:
    vectors: Array = np.full((count, 2), 7, np.float32)
    return Read(vectors, np.full(count, 3, np.uint64))


def test_rows_are_told_when_their_agents_have_moved(watchers: Watchers) -> None:
    asked = frame(["ada", "bo", "ada"])
    accept(watchers, asked)
    assert len(watchers) == 3
    look = watchers.look(0.0, has_news=False)
    assert (look.is_due, look.changed, look.fresh) == (True, ["ada", "bo"], [])
    assert look.thresholds.tolist() == [0.5, 0.5]
    assert look.intervals_ms.tolist() == [20, 20]
    watchers.answer(look, due(ada=0.75), None, 5, 0.0)
    assert sorted(asked.told) == [0, 2]
    assert asked.told[2]["changed"]
    assert asked.told[2]["epoch"] == 5
    assert (asked.told[2]["version"], asked.told[2]["moved"], asked.told[2]["vector"].tolist()) == (9, 0.75, [0, 1])
    assert (len(watchers), asked.open) == (1, 1)
    watchers.answer(watchers.look(0.0, has_news=True), due(bo=1.0), None, 6, 0.0)
    assert (len(watchers), asked.open, asked.told[1]["epoch"]) == (0, 0, 6)


def test_an_unknown_cursor_is_answered_with_what_holds(watchers: Watchers) -> None:
    waits, fresh = frame(["ada"]), frame(["ada"], cursors=[4])
    accept(watchers, waits)
    accept(watchers, fresh)
    assert watchers.next_at == -float("inf")
    look = watchers.look(0.0, has_news=False)
    assert look.fresh == ["ada"]
    watchers.answer(look, due(), read(1), 8, 0.0)
    # Both have seen the same now, and wait for what comes after it.
    for asked in (waits, fresh):
        told = asked.told[0]
        assert (told["changed"], told["epoch"], told["version"], told["moved"]) == (True, 8, 3, 0.0)
    missed = frame(["ada", "ada"], cursors=[8, 1])
    accept(watchers, missed)
    watchers.answer(watchers.look(0.0, has_news=False), None, read(1), 11, 0.0)
    assert {row: told["epoch"] for row, told in missed.told.items()} == {0: 11, 1: 11}, "all go on from the same"


def test_who_waited_in_vain_keeps_its_cursor(watchers: Watchers) -> None:
    asked = frame(["ada", "bo"], wait_ms=100)
    accept(watchers, asked, 1.0)
    watchers.answer(watchers.look(1.0, has_news=False), due(ada=1.0), None, 5, 1.0)
    again = frame(["ada"], cursors=[5], wait_ms=50)
    accept(watchers, again, 1.0)
    watchers.answer_ended(1.06)
    told = again.told[0]
    assert (told["changed"], told["epoch"], told["vector"].tolist()) == (False, 5, [0, 0])
    assert asked.open == 1
    watchers.answer_ended(1.1)
    assert (asked.told[1]["changed"], asked.told[1]["epoch"], asked.open, len(watchers)) == (False, 0, 0, 0)


def test_a_caller_is_answered_before_its_time_is_over(watchers: Watchers) -> None:
    asked = frame(["ada"], deadline=2.0)
    accept(watchers, asked, 1.0)
    watchers.answer_ended(2.0 - module.ANSWERED_BEFORE_S)
    assert asked.open == 0


def test_bad_rows_are_refused_alone(watchers: Watchers) -> None:
    asked = frame(["ada", "", "bo"])
    accept(watchers, asked)
    assert (list(asked.errors), len(watchers), asked.open) == ([1], 2, 2)
    bad = frame(["ada"], threshold=-1.0)
    accept(watchers, bad)
    unknown = frame(["ada"], threshold=float("nan"))
    accept(watchers, unknown)
    assert (bad.open, unknown.open, len(watchers)) == (0, 0, 2)


def test_withdrawn_rows_are_told_nothing(watchers: Watchers) -> None:
    asked: Any = frame(["ada", "bo", "cy"])
    accept(watchers, asked)
    watchers.withdraw(asked, [1])
    assert (asked.open, len(watchers)) == (2, 2)
    watchers.withdraw(asked, [1])
    watchers.answer(watchers.look(0.0, has_news=True), due(ada=1.0, bo=1.0), None, 5, 0.0)
    assert list(asked.told) == [0]
    watchers.withdraw(asked, [])
    assert (asked.open, len(watchers)) == (0, 0)
    watchers.send_away()
    assert list(asked.told) == [0]


def test_all_are_sent_away_wherever_they_are(watchers: Watchers) -> None:
    waits, looked_at, fresh = frame(["ada", "bo"]), frame(["ada"], cursors=[7]), frame(["ada"], cursors=[8])
    accept(watchers, waits)
    accept(watchers, looked_at)
    look: Look = watchers.look(0.0, has_news=False)
    accept(watchers, fresh)
    watchers.send_away(look)
    assert [waits.open, looked_at.open, fresh.open, len(watchers)] == [0, 0, 0, 0]
    assert [each.told[0]["changed"] for each in (waits, looked_at, fresh)] == [False] * 3
    assert [each.told[0]["epoch"] for each in (waits, looked_at, fresh)] == [0, 7, 8]
    assert not watchers.look(0.0, has_news=False).fresh


def test_there_is_room_for_so_many(watchers: Watchers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    accept(watchers, frame(["ada", "ada"]))
    with pytest.raises(Busy):
        accept(watchers, frame(["ada"]))
    watchers.send_away()
    accept(watchers, frame(["bo"]))
    watchers.send_away()
    with pytest.raises(Busy, match="of 2 agents"):  # who is answered at once is remembered, too
        accept(watchers, frame(["cy"], cursors=[9]))


def test_nothing_to_look_at_is_nothing(watchers: Watchers) -> None:
    assert not watchers.look(0.0, has_news=True)
    accept(watchers, frame(["ada"]))
    watchers.look(0.0, has_news=False)
    assert not watchers.look(0.0, has_news=False)
    assert watchers.look(0.0, has_news=True)
