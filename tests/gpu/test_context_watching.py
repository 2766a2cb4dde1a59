"""Who waits for changes: what a cursor says, thresholds and intervals of several, ends, forgetting."""

from __future__ import annotations

import gc
from math import inf
from weakref import WeakSet

from aikoryu.gpu.context.watching import FORGET_S, LEAST_SIFTED, Question, Watcher, Watching


def ask(
    watching: Watching,
    agent: str = "ada",
    *,
    cursor: int = 0,
    now: float = 0.0,
    threshold: float = 0.5,
    interval_s: float = 0.0,
    wait_s: float = 10.0,
) -> Watcher | None:
    return watching.ask(Question(agent, threshold, interval_s, cursor, now + wait_s), "row", now)


def waits(watching: Watching, agent: str = "ada", **how: float) -> Watcher:
    watcher = ask(watching, agent, **how)  # type: ignore[arg-type]
    assert watcher is not None
    return watcher


def test_who_has_seen_what_was_told_last_waits_for_the_next() -> None:
    watching = Watching()
    first = waits(watching)
    assert watching.told(["ada"], 5, 1.0) == [[first]]
    again = waits(watching, cursor=5)
    assert watching.told(["ada"], 6, 2.0) == [[again]]


def test_who_missed_an_answer_gets_what_holds_at_once() -> None:
    watching = Watching()
    waits(watching)
    watching.told(["ada"], 5, 1.0)
    watching.told(["ada"], 6, 2.0)  # between two questions
    assert ask(watching, cursor=5) is None
    assert ask(watching, cursor=0) is None
    assert ask(watching, cursor=99) is None
    assert watching.told(["ada"], 7, 3.0) == [[]]


def test_a_cursor_of_another_owner_is_not_known() -> None:
    watching = Watching()
    assert ask(watching, cursor=3) is None
    assert len(watching) == 1
    waits(watching, cursor=0)


def test_several_watchers_of_one_agent_are_told_by_the_least_of_each() -> None:
    watching = Watching()
    one = waits(watching, threshold=0.5, interval_s=0.2)
    assert watching.changed == {"ada"}
    watching.changed.clear()
    other = waits(watching, threshold=0.9, interval_s=0.1)
    assert watching.changed == {"ada"}
    assert watching.limits("ada") == (0.5, 0.1)
    watching.changed.clear()
    third = waits(watching, threshold=0.7, interval_s=0.3)
    assert watching.changed == set()
    assert watching.told(["ada"], 5, 1.0) == [[one, other, third]]


def test_agents_nobody_watches_are_told_to_nobody() -> None:
    watching = Watching()
    assert watching.told(["bo"], 5, 1.0) == [[]]
    assert (watching.limits("bo"), len(watching)) == ((inf, 0.0), 0)


def test_an_interval_that_ends_is_a_time_to_look() -> None:
    watching = Watching()
    waits(watching, interval_s=0.25)
    assert not watching.is_look_due(0.0)
    watching.told(["ada"], 5, 1.0)
    assert watching.next_at == 1.25  # before its question would have ended
    assert not watching.is_look_due(1.2)
    assert watching.is_look_due(1.25)
    assert not watching.is_look_due(1.25)


def test_without_an_interval_only_news_are_looked_at() -> None:
    watching = Watching()
    waits(watching, wait_s=3.0)
    watching.told(["ada"], 5, 1.0)
    assert watching.ended(3.0) == []
    assert watching.next_at == inf


def test_whoever_has_waited_long_enough_waits_no_more() -> None:
    watching = Watching()
    late, soon = waits(watching, wait_s=5.0), waits(watching, "bo", wait_s=1.0)
    assert watching.next_at == 1.0
    assert watching.ended(0.9) == []
    assert watching.ended(1.0) == [soon]
    assert watching.next_at == 5.0
    assert watching.told(["bo", "ada"], 5, 1.0) == [[], [late]]
    assert watching.ended(9.0) == []


def test_the_withdrawn_are_neither_told_nor_ended() -> None:
    watching = Watching()
    gone, there = waits(watching), waits(watching)
    watching.withdraw(gone)
    watching.withdraw(gone)
    assert watching.told(["ada"], 5, 1.0) == [[there]]
    gone = waits(watching, cursor=5)
    watching.withdraw(gone)
    assert watching.ended(100.0) == []


def test_agents_for_whom_nobody_asks_any_more_are_forgotten() -> None:
    watching = Watching()
    watching.ended(0.0)
    waits(watching, "ada", wait_s=1.0)
    waits(watching, "bo", wait_s=3 * FORGET_S)
    ask(watching, "cy", cursor=9, now=0.5 * FORGET_S)
    watching.changed.clear()
    assert len(watching.ended(FORGET_S + 1)) == 1
    assert (len(watching), watching.changed) == (2, {"ada"})
    assert watching.limits("ada") == (inf, 0.0)
    watching.ended(2 * FORGET_S + 2)
    assert (len(watching), watching.limits("bo")) == (1, (0.5, 0.0))  # who waits is not forgotten


def test_memory_is_bounded_while_agents_and_watchers_come_and_go() -> None:
    watching = Watching()
    for turn in range(50):
        now = turn * FORGET_S / 10
        for number in range(20):
            watcher = waits(watching, f"agent {turn} {number}", now=now, wait_s=1.0, interval_s=0.1)
            watching.withdraw(watcher)
        ever = waits(watching, "ever", now=now, wait_s=1.0)
        watching.withdraw(ever)
        watching.ended(now)
        watching.is_look_due(now)
        watching.changed.clear()
    assert len(watching) <= 22 * 20
    watching.ended(1e6)
    assert len(watching) == 0
    assert watching.next_at == inf


class Row:
    """What answers a question; here only whether somebody holds it."""


def test_questions_that_were_answered_are_let_go_long_before_they_would_have_ended() -> None:
    watching, alive = Watching(), WeakSet[Row]()
    waits(watching, "bo", wait_s=500.0)
    told = 0
    for second in range(10_000):
        row = Row()
        alive.add(row)
        watching.ask(Question("ada", 0.5, 0.0, told, second + 1e6), row, 0.0)
        told = second + 1
        watching.told(["ada"], told, 0.0)
    gc.collect()
    assert len(alive) <= LEAST_SIFTED + 1
    assert watching.next_at == 500.0
    watching.ended(500.0)
    assert watching.next_at == inf, "nobody is woken for what was answered"
