"""The flows of a capture, from its bytes, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

from .capture import BATCH_PACKETS, Capture
from .dissect import dissect
from .flow_table import FlowTable
from .flows import Flows


def capture_flows(capture: Capture, table: FlowTable | None = None, batch: int = BATCH_PACKETS) -> Iterator[Flows]:
    """The flows of a capture as they end, all of them at its end, in bounded memory.

    Time-outs are looked for after each batch, as of its earliest packet: packets of a batch may have come in any order.

    Args:
        capture: an open one.
        table: where the flows are kept; None makes one with the usual time-outs.
        batch: packets at a time.
    """
    if table is None:
        table = FlowTable()
    for index in capture.batches(batch):
        packets = dissect(capture.blob, index.offset, index.captured, index.link, index.wire)
        yield table.update(packets, index.time_ns, index.wire)
        if index.timed.any():
            yield table.expire(int(index.time_ns[index.timed].min()))
    yield table.flush()
