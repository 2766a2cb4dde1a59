"""The chain of handlers that wait for one another, and the deadline they share."""

from __future__ import annotations

from time import monotonic

import msgpack
import pytest

from aikoryu.agents.chain import MOST_HOPS, Chain, decode_chain, new_chain
from aikoryu.bus.deadline import inherited_s, until
from aikoryu.bus.errors import BadMessage, CallCycle, Expired


def test_chain_on_the_wire_is_what_the_documents_say() -> None:
    chain = Chain("c1", ("a.ask",)).through("b.search")
    assert msgpack.unpackb(chain.encode()) == ["c1", ["a.ask", "b.search"]]
    assert decode_chain(chain.encode()) == chain


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", msgpack.packb(["id"]) + b"x", msgpack.packb(["id", "ab"]), b"\x92\xa1\xff\x90"]
)
def test_garbage_is_no_chain(data: bytes) -> None:
    with pytest.raises(BadMessage, match="chain"):
        decode_chain(data)


def test_text_is_no_chain() -> None:
    with pytest.raises(BadMessage, match="a column of bin"):
        decode_chain('["c1", []]')


def test_handler_that_waits_already_is_a_cycle_with_its_path() -> None:
    chain = new_chain().through("z.begin").through("a.ask").through("b.ask#7")
    assert chain.through("b.ask#8")
    with pytest.raises(CallCycle, match=r"a\.ask → b\.ask#7 → a\.ask"):
        chain.through("a.ask")


def test_chain_has_an_end() -> None:
    chain = new_chain()
    for number in range(MOST_HOPS):
        chain = chain.through(f"a.h{number}")
    with pytest.raises(CallCycle, match=f"more than {MOST_HOPS}"):
        chain.through("a.last")


def test_chains_differ() -> None:
    assert new_chain().id != new_chain().id


def test_call_inherits_what_is_left() -> None:
    assert inherited_s(30.0) == 30.0
    token = until.set(monotonic() + 5.0)
    try:
        assert inherited_s(2.0) == 2.0
        assert inherited_s(30.0) == pytest.approx(4.9)
        until.set(monotonic() + 0.0123)
        assert 0.011 <= inherited_s(30.0) <= 0.012
        until.set(monotonic())
        with pytest.raises(Expired, match="nothing was sent"):
            inherited_s(30.0)
    finally:
        until.reset(token)
