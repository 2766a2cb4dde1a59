"""Flows as bytes, and back."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from aikoryu.bus.errors import BadColumn
from aikoryu.netio.flow_table import FlowTable
from aikoryu.netio.flow_wire import FLOW_BYTES, packed, unpacked
from aikoryu.netio.flows import Flows

from .flow_reference import Packet, made
from .test_flow_table import A, B, assert_same


@pytest.fixture
def flows() -> Flows:
    table = FlowTable()
    packets = [Packet(0, A, B, flags=2), Packet(5, B, A, flags=18), Packet(6, (9, 9), B, protocol=17)]
    return Flows.joined([table.update(*made(packets)), table.flush()])


def test_flows_are_the_same_again(flows: Flows) -> None:
    assert_same(unpacked(packed(flows)), flows)
    assert len(packed(flows)) > len(flows) * FLOW_BYTES


def test_no_flows_are_no_bytes(flows: Flows) -> None:
    assert packed(flows[:0]) == b""
    assert_same(unpacked(b""), flows[:0])


def test_any_language_reads_them(flows: Flows) -> None:
    columns = msgpack.unpackb(packed(flows))
    assert (columns["packets"]["t"], columns["packets"]["s"]) == ("u8", [2, 2])
    packets = np.frombuffer(columns["packets"]["d"], "<u8").reshape(2, 2)
    assert packets.tolist() == flows.packets.tolist()


@pytest.mark.parametrize("change", ["nothing", "missing", "dtype", "rows"])
def test_what_are_no_flows_is_refused(flows: Flows, change: str) -> None:
    columns = msgpack.unpackb(packed(flows))
    if change == "missing":
        del columns["serial"]
    elif change == "dtype":
        columns["serial"]["t"] = "i8"
    elif change == "rows":
        columns["serial"]["s"] = [1]
    blob = b"\x81" if change == "nothing" else msgpack.packb(columns)
    with pytest.raises(BadColumn):
        unpacked(blob)
