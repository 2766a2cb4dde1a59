"""The flows of a capture file, batch by batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aikoryu.netio.capture import open_capture
from aikoryu.netio.capture_flows import capture_flows
from aikoryu.netio.flow_cuts import Timeouts
from aikoryu.netio.flow_key import KeyChoice
from aikoryu.netio.flow_table import FlowTable
from aikoryu.netio.flows import Flows, Reason

from . import truth

CAPTURES = ["44_modbus_ics.pcap", "17_geneve.pcap", "36_pcapng_be_sections.pcapng"]


@pytest.mark.skipif(not truth.captures(), reason=f"no captures in {truth.PACKETS}: set PACKET_TEST_DATA")
@pytest.mark.parametrize("name", CAPTURES)
def test_batches_of_any_size_give_the_same_flows(name: str) -> None:
    whole = flows_of(truth.PACKETS / "captures" / name, 1 << 20)
    for batch in (97, 4096):
        found = flows_of(truth.PACKETS / "captures" / name, batch)
        for column, values in vars(whole).items():
            theirs = getattr(found, column)
            if column == "reason":
                # What is still open at the end had ended before, as far as smaller batches could tell.
                theirs = np.where(values == Reason.END, Reason.END, theirs)
            assert theirs.tolist() == values.tolist(), (batch, column)


def flows_of(path: Path, batch: int) -> Flows:
    table = FlowTable(KeyChoice("inner"), Timeouts(idle_s=5, active_s=60))
    with open_capture(path) as capture:
        flows = Flows.joined(list(capture_flows(capture, table, batch)))
        assert table.packets == len(capture.index)
        assert not len(table)
        return flows
