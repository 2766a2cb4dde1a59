"""Parts of a batch: no row lost, none twice, frames whole where they fit."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.gpu.fallback import Part, Verdict
from aikoryu.gpu.lane import Lane
from aikoryu.gpu.parts import cut, split
from aikoryu.gpu.plan import Place, Plan, Span, Ticket

PLACE = Place("cpu", 1)
LANE = Lane("lane", 100, PLACE)


def plan_of(frames: list[list[int]], gone: set[int] | None = None) -> Plan:
    """A batch of frames, each of spans of these rows with a row left out between."""
    spans = []
    for counts in frames:
        ticket = Ticket(None, LANE, sum(counts) + len(counts), 1, 0, 0.0, 1e9)
        starts = itertools.accumulate((count + 1 for count in counts), initial=0)
        spans += [Span(ticket, start, count) for start, count in zip(starts, counts, strict=False)]
    rows = sum(map(sum, frames))
    return Plan(LANE, PLACE, spans, rows, [Span(spans[0].ticket, 0, 1)], 1, "why", gone or set())


def rows_of(plan: Plan) -> list[tuple[int, int, bool]]:
    """Each row of a batch: whose, which, and whether its caller has gone."""
    rows = [(id(span.ticket), span.start + row) for span in plan.spans for row in range(span.count)]
    return [(*row, position in plan.gone) for position, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("frames", "parts"),
    [
        ([[3], [3], [3]], [[3, 3], [3]]),
        ([[7]], [[7]]),
        ([[8]], [[7], [1]]),
        ([[3], [20], [2]], [[3], [7], [7], [6], [2]]),
        ([[3], [15], [6]], [[3], [7], [7], [1, 6]]),
        ([[2, 2], [2, 2], [3]], [[2, 2], [2, 2, 3]]),
    ],
)
def test_frames_are_whole_where_they_fit(frames: list[list[int]], parts: list[list[int]]) -> None:
    assert [[span.count for span in part.spans] for part in cut(plan_of(frames), 7)] == parts


@given(data=st.data())
def test_no_row_is_lost_and_none_is_there_twice(data: st.DataObject) -> None:
    counts = st.lists(st.integers(1, 9), min_size=1, max_size=3)
    frames = data.draw(st.lists(counts, min_size=1, max_size=6), label="frames")
    most = data.draw(st.integers(1, 20), label="most")
    rows = sum(map(sum, frames))
    plan = plan_of(frames, data.draw(st.sets(st.integers(0, rows - 1)), label="gone"))
    whole = rows_of(plan)
    for parts in (cut(plan, most), split(plan)):
        assert [row for part in parts for row in rows_of(part)] == whole
        assert [part.rows for part in parts] == [sum(span.count for span in part.spans) for part in parts]
        assert {(part.runs, part.reason) for part in parts} == {(1, "why")}
    assert all(part.rows <= most for part in cut(plan, most))


def test_batch_small_enough_stays_as_it_is() -> None:
    plan = plan_of([[3], [4]])
    assert cut(plan, 7) == [plan]
    assert cut(plan, 7)[0] is plan


def test_split_keeps_who_withdrew() -> None:
    assert [part.gone for part in split(plan_of([[2], [3]], {1, 2, 4}))] == [{1}, {0, 2}]


def test_what_was_told_of_the_expired_is_told_once() -> None:
    assert [part.expired for part in cut(plan_of([[3], [4]]), 3)] == [[], [], []]


def test_parts_of_a_part_belong_to_the_same_verdict() -> None:
    plan, verdict = plan_of([[2], [3]]), Verdict(1)
    part = Part(plan.lane, plan.place, plan.spans, plan.rows, [], verdict=verdict)
    assert [each.verdict for each in split(part) if isinstance(each, Part)] == [verdict, verdict]
