"""What waits in a mailbox, in which order it comes, and what is refused: time is an argument."""

from __future__ import annotations

import pytest

from aikoryu.agents.mailbox import FIRST_RUN_S, LONGEST_RETRY_S, Mailbox
from aikoryu.bus.errors import Busy

NEVER = float("inf")


def order(mailbox: Mailbox[str]) -> list[str]:
    """What runs, one after the other."""
    found = []
    while taken := mailbox.due(0.0)[0]:
        found += taken
        for _ in taken:
            mailbox.finished(0.01)
    return found


def test_as_many_run_as_may_and_the_rest_wait() -> None:
    mailbox: Mailbox[str] = Mailbox(2, 2)
    assert [mailbox.begin() for _ in range(3)] == [True, True, False]
    mailbox.offer("c", 0, NEVER)
    mailbox.offer("d", 0, NEVER)
    assert (mailbox.running, len(mailbox), mailbox.load) == (2, 2, 2.0)
    with pytest.raises(Busy):
        mailbox.offer("e", 0, NEVER)
    assert mailbox.due(0.0) == ([], [])
    mailbox.finished(0.1)
    assert not mailbox.begin(), "it would overtake what waits"
    assert mailbox.due(0.0) == (["c"], [])
    assert (mailbox.running, len(mailbox)) == (2, 1)


def test_mailbox_of_none_still_runs() -> None:
    mailbox: Mailbox[str] = Mailbox(1, 0)
    assert mailbox.begin()
    with pytest.raises(Busy):
        mailbox.offer("b", 0, NEVER)


def test_priority_then_deadline_then_turn() -> None:
    mailbox: Mailbox[str] = Mailbox(1, 10)
    for item, priority, deadline in (
        ("background", -1, 1.0),
        ("late", 0, 9.0),
        ("soon", 0, 5.0),
        ("first", 0, NEVER),
        ("second", 0, NEVER),
        ("interactive", 1, NEVER),
    ):
        mailbox.offer(item, priority, deadline)
    assert order(mailbox) == ["interactive", "soon", "late", "first", "second", "background"]


def test_items_that_cannot_be_compared_wait_together() -> None:
    mailbox: Mailbox[object] = Mailbox(1, 10)
    things = [object(), object(), object()]
    for thing in things:
        mailbox.offer(thing, 0, 1.0)
    assert mailbox.due(0.0)[0] == things[:1]


def test_late_ones_never_run() -> None:
    mailbox: Mailbox[str] = Mailbox(1, 10)
    mailbox.offer("late", 0, 1.0)
    mailbox.offer("later", 0, 2.0)
    mailbox.offer("in time", 0, 3.0)
    assert mailbox.due(2.0) == (["in time"], ["late", "later"])


def test_all_late_ones_are_dropped_on_request() -> None:
    mailbox: Mailbox[str] = Mailbox(1, 10)
    for item, deadline in (("running", 9.0), ("late", 1.0), ("in time", 9.0), ("late too", 2.0)):
        mailbox.offer(item, 1 if item == "running" else 0, deadline)
    assert mailbox.due(0.0)[0] == ["running"]
    assert mailbox.expire(0.5) == []
    assert sorted(mailbox.expire(2.0)) == ["late", "late too"]
    assert len(mailbox) == 1


def test_withdrawn_one_leaves_the_others_in_order() -> None:
    mailbox: Mailbox[str] = Mailbox(1, 10)
    for item, deadline in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
        mailbox.offer(item, 0, deadline)
    assert mailbox.withdraw("a")
    assert not mailbox.withdraw("a")
    assert not mailbox.withdraw("z")
    assert order(mailbox) == ["b", "c"]


def test_time_to_come_again_follows_what_was_measured() -> None:
    mailbox: Mailbox[int] = Mailbox(2, 100)
    assert mailbox.retry_after_s == pytest.approx(FIRST_RUN_S / 2)
    for _ in range(100):
        mailbox.running += 1
        mailbox.finished(1.0)
    for item in range(8):
        mailbox.offer(item, 0, NEVER)
    assert mailbox.retry_after_s == pytest.approx(4.0, rel=0.01)
    for item in range(90):
        mailbox.offer(item, 0, NEVER)
    assert mailbox.retry_after_s == LONGEST_RETRY_S
    for item in range(2):
        mailbox.offer(item, 0, NEVER)
    with pytest.raises(Busy) as caught:
        mailbox.offer(102, 0, NEVER)
    assert caught.value.retry_after_s == LONGEST_RETRY_S
