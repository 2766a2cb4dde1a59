"""What is kept of one key: which calls are known again, and for how long."""

from __future__ import annotations

import pytest

from aikoryu.agents import saved as module
from aikoryu.agents.saved import CallNumber, Saved, decode_number, decode_saved
from aikoryu.bus.errors import BadMessage, Forgotten


def call(number: int, client: int = 7, settled: int = 0) -> CallNumber:
    return CallNumber(client, number, settled)


def applied(*calls: CallNumber) -> Saved:
    saved = Saved("a")
    for each in calls:
        saved = saved.after(b"state", 1, each, b"%d" % each.number)
    return saved


def test_a_call_that_was_applied_is_answered_as_it_was() -> None:
    saved = applied(call(1), call(2), call(1, client=8))
    assert saved.reply_to(call(2)) == b"2"
    assert saved.reply_to(call(3)) is None
    assert saved.reply_to(call(1, client=9)) is None


def test_what_its_client_has_settled_is_dropped() -> None:
    saved = applied(call(1), call(2), call(1, client=8), call(3, settled=3))
    assert [(kept.client, kept.number) for kept in saved.calls] == [(8, 1), (7, 3)]
    assert saved.forgotten == {}


def test_copy_that_a_later_call_has_overtaken_is_not_applied_again() -> None:
    saved = decode_saved(applied(call(1), call(2), call(3, settled=3)).encode())
    for number in (1, 2):
        with pytest.raises(Forgotten, match=f"no more for call {number}"):
            saved.reply_to(call(number))
    assert saved.reply_to(call(2, client=8)) is None


def test_what_has_no_room_is_known_to_be_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CALLS", 2)
    saved = applied(call(5), call(6), call(7))
    assert saved.reply_to(call(6)) == b"6"
    with pytest.raises(Forgotten):
        saved.reply_to(call(5))
    with pytest.raises(Forgotten):
        saved.reply_to(call(4))  # it may have been applied before
    assert saved.reply_to(call(8)) is None


def test_replies_take_a_bounded_room_but_the_last_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    saved = Saved("a").after(b"", 1, call(1), b"x" * 6).after(b"", 1, call(2), b"y" * 6)
    assert [kept.number for kept in saved.calls] == [2]
    saved = saved.after(b"", 1, call(3), b"z" * 20)
    assert [kept.number for kept in saved.calls] == [3]


def test_so_many_clients_are_remembered_of_whom_something_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CALLS", 1)
    monkeypatch.setattr(module, "MOST_FORGOTTEN", 2)
    saved = applied(*(call(1, client=client) for client in (1, 2, 3, 4)))
    assert saved.forgotten == {2: 1, 3: 1}


def test_what_is_written_can_be_read() -> None:
    saved = applied(call(1), call(2))
    assert decode_saved(saved.encode()) == saved
    assert decode_number(call(1).encode()) == call(1)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x01", b"\x93\x01\x02\xa1x"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_saved(data)
    with pytest.raises(BadMessage):
        decode_number(data)
