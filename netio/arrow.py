"""Flows and packets as Arrow tables, and files of them. Needs pyarrow: `pip install 'aikoryu[arrow]'`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .address_text import address_texts
from .dissect import dissect
from .flows import Flows, Reason
from .labels import How, Labels, titles
from .packet_index import Array, PacketIndex, empty
from .packets import HEADER_DTYPES, NO_LABEL, NO_VLAN, PACKET_DTYPES, Error, Headers, Packets, Tunnel
from .protocols import Protocol
from .tcp_state import ConnState

ENDS = ("originator", "responder")
OF_FLOW = ("source_port", "destination_port", "protocol", "is_fragment", "icmp_type", "icmp_code", "serial")
COUNTS_BY_END = ("packets", "wire_bytes", "ip_bytes", "payload_bytes")
SIZES_BY_END = ("size_least", "size_most", "size_squares", "gap_sum_ns", "gap_least_ns", "gap_most_ns", "gap_squares")
LISTS_BY_END = ("flag_counts", "first_sizes", "first_gaps_us")
TIMES_BY_END = ("first_ns", "last_ns")
ADDRESSES = ("src_high", "src_low", "dst_high", "dst_low")


def flow_table(flows: Flows) -> pa.Table:
    """A row a flow. What `Flows` has by direction is two columns, `originator_…` and `responder_…`.

    Addresses, tunnel, state, history and reason are text; times are timestamps. VLANs are null where there is none, and
    so are times of an end that sent nothing.
    """
    columns: dict[str, Any] = {
        "start": _times(flows.start_ns),
        "end": _times(flows.end_ns),
        "source": _addresses(flows.version, flows.source_high, flows.source_low),
        "destination": _addresses(flows.version, flows.destination_high, flows.destination_low),
    }
    columns |= {name: pa.array(getattr(flows, name)) for name in OF_FLOW}
    columns |= _vlans(flows)
    columns["tunnel"] = _named(flows.tunnel, Tunnel)
    columns["tunnel_id"] = pa.array(flows.tunnel_id)
    for number, end in enumerate(ENDS):
        sent = flows.packets[:, number] > 0
        for name in TIMES_BY_END:
            columns[f"{end}_{name.removesuffix('_ns')}"] = _times(getattr(flows, name)[:, number], sent)
        columns |= {
            f"{end}_{name}": pa.array(_column(flows, name, number))
            for name in (*COUNTS_BY_END, *SIZES_BY_END, "tcp_flags")
        }
        columns |= {f"{end}_{name}": _lists(_column(flows, name, number)) for name in LISTS_BY_END}
    columns["state"] = _named(flows.state, ConnState)
    columns["history"] = pa.array(flows.history.tolist(), pa.string())
    columns["is_flipped"] = pa.array(flows.is_flipped)
    columns["is_continued"] = pa.array(flows.is_continued)
    columns["reason"] = _named(flows.reason, Reason)
    return pa.table(columns)


def packet_table(packets: Packets, index: PacketIndex, labels: Labels | None = None) -> pa.Table:
    """A row a packet: its place in the capture, all columns of both headers, `outer_…` and `inner_…`, and its label.

    Args:
        packets: n dissected packets.
        index: their rows of the capture's index.
        labels: of the same packets; without, `label` and `label_how` are null.
    """
    columns: dict[str, Any] = {
        "time": _times(index.time_ns, index.timed),
        "captured": pa.array(index.captured),
        "wire": pa.array(index.wire),
        "interface": pa.array(index.interface),
    }
    named = {"vlan_outer", "vlan_inner", "mpls_label", "tunnel", "error"}
    columns |= {name: pa.array(getattr(packets, name)) for name in PACKET_DTYPES if name not in named}
    columns |= _vlans(packets)
    columns["mpls_label"] = pa.array(packets.mpls_label, mask=packets.mpls_label == NO_LABEL)
    columns["tunnel"] = _named(packets.tunnel, Tunnel)
    columns["error"] = _named(packets.error, Error)
    for prefix, headers in (("outer", packets.outer), ("inner", packets.inner)):
        columns |= {f"{prefix}_{name}": column for name, column in _header_columns(headers).items()}
    columns["label"], columns["label_how"] = _labels(labels, len(packets))
    return pa.table(columns)


def write_parquet(path: str | Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Writes tables to a file, one after the other, and gives the number of rows.

    Args:
        path: a file that is made anew.
        schema: of all tables: `FLOW_SCHEMA` or `PACKET_SCHEMA`.
        tables: any number.
    """
    rows = 0
    with pq.ParquetWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(table)
            rows += table.num_rows
    return rows


def write_arrow(path: str | Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Writes tables to an Arrow file (IPC), which other programs map into memory, and gives the number of rows.

    Addresses are plain text there: such a file has one dictionary a column, which is written before all rows.

    Args:
        path: a file that is made anew.
        schema: of all tables: `FLOW_SCHEMA` or `PACKET_SCHEMA`.
        tables: any number.
    """
    plain = pa.schema(
        [each.with_type(pa.string()) if each.name.endswith(("source", "destination")) else each for each in schema]
    )
    rows = 0
    with pa.ipc.new_file(path, plain, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        for table in tables:
            writer.write_table(table.cast(plain))
            rows += table.num_rows
    return rows


WRITERS = {".parquet": write_parquet, ".arrow": write_arrow, ".feather": write_arrow}
"""How a file is written, by the end of its name."""


def _labels(labels: Labels | None, rows: int) -> tuple[pa.Array, pa.Array]:
    """Usual names, null for none, and how they were found."""
    if labels is None:
        labels = Labels(np.zeros(rows, np.uint16), np.zeros(rows, np.uint8))
    names = pa.array(titles(np.arange(max(Protocol) + 1)))
    label = pa.DictionaryArray.from_arrays(pa.array(labels.protocol, pa.int32(), mask=labels.how == How.NONE), names)
    return label, _named(labels.how, How)


def _header_columns(headers: Headers) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "source": _addresses(headers.version, headers.src_high, headers.src_low),
        "destination": _addresses(headers.version, headers.dst_high, headers.dst_low),
    }
    return columns | {name: pa.array(getattr(headers, name)) for name in HEADER_DTYPES if name not in ADDRESSES}


def _column(flows: Flows, name: str, number: int) -> Array:
    return np.ascontiguousarray(getattr(flows, name)[:, number])


def _times(nanoseconds: Array, is_known: Array | None = None) -> pa.Array:
    mask = None if is_known is None else ~is_known
    return pa.array(np.ascontiguousarray(nanoseconds), pa.timestamp("ns"), mask=mask)


def _addresses(version: Array, high: Array, low: Array) -> pa.Array:
    """Text, each different address once; null for no address."""
    texts, which = address_texts(version, high, low)
    return pa.DictionaryArray.from_arrays(
        pa.array(which, pa.int32(), mask=version == 0), pa.array(texts.tolist(), pa.string())
    )


def _named(values: Array, names: Any) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(values.astype(np.int32)), pa.array([name.name for name in names]))


def _lists(values: Array) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _vlans(of: Flows | Packets) -> dict[str, Any]:
    return {
        name: pa.array(getattr(of, name), mask=getattr(of, name) == NO_VLAN) for name in ("vlan_outer", "vlan_inner")
    }


FLOW_SCHEMA = flow_table(Flows.joined([])).schema
PACKET_SCHEMA = packet_table(dissect(*[np.empty(0, np.uint8)] * 4), empty(0)).schema
