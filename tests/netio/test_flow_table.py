"""Flows of generated traffic against a plain reference: every cut of it into batches gives the same."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.netio.flow_cuts import BadTable, Timeouts
from aikoryu.netio.flow_key import KeyChoice
from aikoryu.netio.flow_table import FlowTable
from aikoryu.netio.flows import Flows, Reason
from aikoryu.netio.packets import NO_VLAN

from .flow_reference import Packet, made, plain_flows, rows_of

SECOND = 10**9
A, B = (1, 1000), (2, 80)
SYN, SYN_ACK, ACK, FIN, RST = 2, 18, 16, 17, 4

ends = st.tuples(st.integers(1, 2), st.integers(0, 2))
mixed = st.lists(
    st.builds(
        Packet,
        # Gaps around the time-outs of the tests, clocks that go back, and times that differ by more than 63 bits.
        time_ns=st.one_of(st.integers(-3, 20), st.sampled_from([-(2**63), 2**63 - 1])),
        source=ends,
        destination=ends,
        version=st.sampled_from([4, 4, 4, 6, 0]),
        protocol=st.sampled_from([6, 6, 6, 17, 1]),
        flags=st.one_of(st.sampled_from([SYN, SYN_ACK, ACK, FIN, RST, 20]), st.integers(0, 0xFFF)),
        seq=st.integers(0, 2),
        payload=st.integers(0, 2),
        wire=st.one_of(st.integers(60, 62), st.sampled_from([0, 2**32 - 1])),
        ip=st.integers(40, 41),
        vlans=st.sampled_from([(NO_VLAN, NO_VLAN), (1, NO_VLAN), (1, 2)]),
        tunnel=st.sampled_from([(0, 0), (3, 7), (4, 7)]),
        fragment_offset=st.sampled_from([0, 0, 0, 8]),
        icmp=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    ),
    max_size=40,
)
# Many packets of one connection, so that records are cut several times within a batch and letters come again.
conversation = st.lists(
    st.builds(
        lambda time, ends, flags, seq: Packet(time, ends[0], ends[1], flags=flags, seq=seq),
        st.integers(0, 40),
        st.sampled_from([(A, B), (A, B), (B, A)]),
        st.sampled_from([SYN, SYN, SYN_ACK, ACK, FIN, RST]),
        st.integers(0, 2),
    ),
    min_size=10,
    max_size=60,
)
traffic = st.one_of(
    mixed, conversation, conversation.map(lambda packets: sorted(packets, key=lambda packet: packet.time_ns))
)
timeouts = st.tuples(
    st.one_of(st.none(), st.integers(1, 6).map(lambda value: value / SECOND)),
    st.one_of(st.none(), st.integers(1, 12).map(lambda value: value / SECOND)),
)


def test_a_connection() -> None:
    flows = whole(
        [
            Packet(0, A, B, flags=SYN, wire=74),
            Packet(5, B, A, flags=SYN_ACK, wire=70),
            Packet(6, A, B, flags=ACK, wire=60),
            Packet(7, A, B, flags=ACK, payload=100, wire=160),
            Packet(9, B, A, flags=FIN, wire=60),
            Packet(12, A, B, flags=FIN, wire=60),
        ]
    )
    assert len(flows) == 1
    assert flows.history.tolist() == ["ShADfF"]
    assert rows_of(flows)[0]["state"] == "SF"
    assert flows.packets.tolist() == [[4, 2]]
    assert flows.wire_bytes.tolist() == [[354, 130]]
    assert flows.payload_bytes.tolist() == [[100, 0]]
    assert flows.first_ns.tolist() == [[0, 5]]
    assert flows.last_ns.tolist() == [[12, 9]]
    assert flows.start_ns.tolist() == [0]
    assert flows.end_ns.tolist() == [12]
    assert flows.gap_most_ns.tolist() == [[6, 4]]
    assert flows.tcp_flags.tolist() == [[FIN | SYN | ACK, FIN | SYN | ACK]]
    assert flows.first_sizes[0, 0, :5].tolist() == [74, 60, 160, 60, 0]


@given(traffic, timeouts, st.booleans(), st.booleans())
def test_flows_are_those_of_a_plain_reference(
    packets: list[Packet], limits: tuple[float | None, float | None], vlan: bool, tunnel: bool
) -> None:
    flows = whole(packets, KeyChoice(vlan=vlan, tunnel=tunnel), Timeouts(*limits))
    assert rows_of(flows) == plain_flows(packets, *limits, vlan, tunnel)


@given(traffic, timeouts, st.lists(st.integers(0, 40), max_size=6))
def test_every_cut_into_batches_gives_the_same_flows(
    packets: list[Packet], limits: tuple[float | None, float | None], cuts: list[int]
) -> None:
    at_once = whole(packets, timeouts=Timeouts(*limits))
    table = FlowTable(timeouts=Timeouts(*limits), capacity=64)
    bounds = [0, *sorted(cuts), len(packets)]
    parts = [add(table, packets[first:last]) for first, last in pairwise(bounds)]
    assert_same(Flows.joined([*parts, table.flush()]), at_once)
    assert table.packets == len(packets)
    assert table.ignored == sum(not packet.version for packet in packets)


@given(traffic, timeouts)
def test_looking_for_time_outs_at_any_time_gives_the_same_flows(
    packets: list[Packet], limits: tuple[float | None, float | None]
) -> None:
    packets = sorted(packets, key=lambda packet: packet.time_ns)
    now = packets[-1].time_ns if packets else 0
    table, other = (FlowTable(timeouts=Timeouts(*limits), capacity=64) for _ in range(2))
    parts = []
    for packet in packets:
        parts += [table.expire(packet.time_ns), add(table, [packet])]
    often = Flows.joined([*parts, table.expire(now), table.flush()])
    assert_same(often, Flows.joined([add(other, packets), other.expire(now), other.flush()]))


def test_an_idle_flow_ends_though_no_packet_comes() -> None:
    table = FlowTable()
    add(table, [Packet(0, A, B), Packet(SECOND, B, A)])
    assert not len(table.expire(121 * SECOND - 1))
    ended = table.expire(121 * SECOND)
    assert rows_of(ended)[0]["reason"] == "IDLE"
    assert ended.packets.tolist() == [[1, 1]]
    assert not len(table)
    assert not len(table.flush())


@pytest.mark.parametrize(("originator", "responder"), [(A, B), (B, A)])
def test_direction_outlives_the_active_time_out(originator: tuple[int, int], responder: tuple[int, int]) -> None:
    """The second record has no SYN, and its first packet is the responder's."""
    table = FlowTable(timeouts=Timeouts(idle_s=10, active_s=10))
    add(table, [Packet(0, responder, originator), Packet(5 * SECOND, originator, responder, flags=SYN)])
    first = table.expire(10 * SECOND)
    assert rows_of(first)[0]["ends"] == (originator, responder)
    assert first.is_flipped.tolist() == [True]
    assert len(table) == 1
    assert not len(table.expire(14 * SECOND))
    add(table, [Packet(14 * SECOND, responder, originator)])
    second = table.flush()
    assert rows_of(second)[0]["ends"] == (originator, responder)
    assert second.is_continued.tolist() == [True]
    assert second.is_flipped.tolist() == [False]
    assert second.serial.tolist() == [2]


@pytest.mark.parametrize(("active", "reason"), [(11, Reason.ACTIVE), (12, Reason.IDLE), (13, Reason.IDLE)])
def test_a_flow_ends_by_the_time_out_that_passes_first(active: int, reason: Reason) -> None:
    """Its idle time-out of 10 passes at 12."""
    limits = Timeouts(10 / SECOND, active / SECOND)
    packets = [Packet(0, A, B), Packet(2, A, B), Packet(20, A, B)]
    assert whole(packets, timeouts=limits).reason.tolist() == [reason, Reason.END]
    table = FlowTable(timeouts=limits)
    add(table, packets[:2])
    assert table.expire(20).reason.tolist() == [reason]


def test_what_the_active_time_out_left_goes_in_silence() -> None:
    table = FlowTable(timeouts=Timeouts(idle_s=10, active_s=10))
    add(table, [Packet(0, A, B), Packet(5 * SECOND, A, B)])
    assert len(table.expire(12 * SECOND)) == 1
    assert len(table) == 1
    assert not len(table.expire(15 * SECOND))
    assert not len(table)


def test_a_full_table_ends_the_flows_that_were_idle_for_longest() -> None:
    table = FlowTable(capacity=4)
    add(table, [Packet(time, (1, port), B) for time, port in enumerate([10, 11, 12, 13])])
    add(table, [Packet(9, (1, 10), B)])
    ended = add(table, [Packet(20, (1, 20), B), Packet(20, (1, 12), B)])
    assert [row["reason"] for row in rows_of(ended)] == ["FULL"]
    assert ended.source_port.tolist() == [11]
    assert len(table) == 4
    rest = table.flush()
    assert rest.serial.tolist() == [0, 2, 3, 5]
    assert rest.source_port.tolist() == [10, 12, 13, 20]


@given(traffic, st.integers(1, 6))
def test_a_full_table_loses_no_packet(packets: list[Packet], capacity: int) -> None:
    table = FlowTable(timeouts=Timeouts(None, None), capacity=capacity)
    parts = []
    for first in range(0, len(packets), 5):
        parts.append(add(table, packets[first : first + 5]))
        assert len(table) <= capacity
    flows = Flows.joined([*parts, table.flush()])
    assert int(flows.packets.sum()) == sum(packet.version > 0 for packet in packets)


def test_of_flows_as_old_those_go_that_began_first() -> None:
    table = FlowTable(capacity=4)
    add(table, [Packet(0, (1, port), B) for port in (10, 11, 12, 13)])
    table.expire(2000 * SECOND)
    # Slots are taken again in another order than they were left.
    add(table, [Packet(0, (1, port), B) for port in (23, 22, 21, 20)])
    ended = add(table, [Packet(0, (1, 30), B), Packet(0, (1, 31), B)])
    assert ended.source_port.tolist() == [23, 22]


@given(traffic, timeouts, st.integers(0, 40), st.integers(3, 64))
def test_another_table_goes_on_where_one_was(
    packets: list[Packet], limits: tuple[float | None, float | None], cut: int, capacity: int
) -> None:
    """Also where it is full, and after time-outs have left records without packets."""
    first, second, whole = (FlowTable(timeouts=Timeouts(*limits), capacity=capacity) for _ in range(3))
    before = [add(first, packets[:cut]), first.expire(5)]
    second.restore(first.state())
    assert (len(second), second.packets, second.ignored) == (len(first), first.packets, first.ignored)
    found = Flows.joined([*before, add(second, packets[cut:]), second.expire(10), second.flush()])
    parts = [add(whole, packets[:cut]), whole.expire(5), add(whole, packets[cut:]), whole.expire(10), whole.flush()]
    assert_same(found, Flows.joined(parts))


def test_what_the_active_time_out_left_is_gone_on_with() -> None:
    first, second = (FlowTable(timeouts=Timeouts(idle_s=10, active_s=10)) for _ in range(2))
    add(first, [Packet(0, A, B), Packet(5 * SECOND, A, B)])
    assert len(first.expire(12 * SECOND)) == 1
    second.restore(first.state())
    assert not len(second.expire(13 * SECOND))
    add(second, [Packet(14 * SECOND, B, A)])
    (row,) = rows_of(second.flush())
    assert (row["is_continued"], row["reason"]) == (True, "END")


def test_a_state_that_is_too_large_is_refused() -> None:
    table = FlowTable(capacity=4)
    add(table, [Packet(0, (1, port), B) for port in (10, 11, 12, 13)])
    with pytest.raises(BadTable, match="4 flows for a table of 3"):
        FlowTable(capacity=3).restore(table.state())


def test_flows_come_and_go_and_the_index_is_renewed() -> None:
    """Ten times as many flows as the table holds, so that places of the index are taken and left many times."""
    table = FlowTable(timeouts=Timeouts(idle_s=1e-9), capacity=64)
    seen = 0
    for turn in range(100):
        packets = [Packet(turn, (turn * 16 + number, 1), B) for number in range(16)]
        seen += len(add(table, packets)) + len(table.expire(turn))
        assert len(table) == 16
        seen += len(add(table, packets[:3]))
    assert seen + len(table) == 100 * 16


def test_one_flow_with_most_of_the_packets_is_reduced_like_others() -> None:
    packets = [Packet(time, A, B, flags=ACK, payload=1) for time in range(3000)]
    packets[1500:1500] = [Packet(1499, B, A, protocol=17)]
    flows = whole(packets)
    assert flows.packets.tolist() == [[3000, 0], [1, 0]]
    assert flows.gap_sum_ns.tolist() == [[2999, 0], [0, 0]]
    assert flows.first_sizes[0, 0].tolist() == [60] * 8


def test_sums_of_squares_say_when_they_are_full() -> None:
    """Two frames of 2**32 - 1 bytes are below 2**64 in one square each, and above in the sum."""
    large = Packet(0, A, B, wire=2**32 - 1)
    assert whole([large]).size_squares.tolist() == [[(2**32 - 1) ** 2, 0]]
    table = FlowTable()
    add(table, [large])
    add(table, [large])
    assert table.flush().size_squares.tolist() == [[2**64 - 1, 0]]
    assert whole([large] * 3).size_squares.tolist() == [[2**64 - 1, 0]]


def test_keys_whose_hashes_agree_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    packets = [Packet(time, (1, time % 5), B) for time in range(50)]
    expected = whole(packets)
    monkeypatch.setattr("aikoryu.netio.flow_key.FlowKeys.hashes", lambda keys, seed: np.zeros(len(keys), np.uint64))
    assert_same(whole(packets), expected)


def test_history_has_room_for_what_changes_the_state() -> None:
    """Any number of SYNs that are sent anew leave room for the end of the connection."""
    packets = [Packet(time, A, B, flags=SYN, seq=time) for time in range(100)]
    packets += [Packet(100, B, A, flags=SYN_ACK), Packet(101, A, B, flags=FIN), Packet(102, B, A, flags=FIN)]
    flows = whole(packets)
    assert flows.history.tolist() == ["S" * 15 + "hFf"]
    assert rows_of(flows)[0]["state"] == "SF"


@pytest.mark.parametrize("capacity", [0, -1, 2**31 + 1])
def test_a_capacity_that_is_not_allowed_is_named(capacity: int) -> None:
    with pytest.raises(BadTable, match=f"{capacity} flows: give a capacity"):
        FlowTable(capacity=capacity)


@pytest.mark.parametrize("limits", [{"idle_s": 0}, {"active_s": -1}, {"idle_s": float("nan")}, {"active_s": 2.0**40}])
def test_a_time_out_that_is_not_allowed_is_named(limits: dict[str, float]) -> None:
    with pytest.raises(BadTable, match=next(iter(limits))):
        Timeouts(**limits)


def whole(packets: list[Packet], key: KeyChoice | None = None, timeouts: Timeouts | None = None) -> Flows:
    """The flows of packets that come in one batch."""
    table = FlowTable(key, timeouts, capacity=64)
    return Flows.joined([add(table, packets), table.flush()])


def add(table: FlowTable, packets: list[Packet]) -> Flows:
    return table.update(*made(packets))


def assert_same(found: Flows, expected: Flows) -> None:
    """All columns agree, bit by bit."""
    for name, column in vars(expected).items():
        theirs: Any = getattr(found, name)
        assert theirs.dtype == column.dtype
        assert theirs.tolist() == column.tolist(), name
