"""tshark's reading of real captures, and how it compares with ours. The data lie outside of the repository."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterable, Iterator
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from aikoryu.netio.packet_index import PacketIndex
from aikoryu.netio.packets import NO_LABEL, NO_VLAN, Headers, Packets, Tunnel

DATA = Path(os.environ.get("PACKET_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
PACKETS = DATA / "packets"

HEADER_COLUMNS = {
    "proto": "protocol",
    "sport": "sport",
    "dport": "dport",
    "hdr_len": "header_length",
    "total_len": "total_length",
    "ttl": "ttl",
    "tos": "tos",
    "ip_id": "identification",
    "df": "dont_fragment",
    "mf": "more_fragments",
    "frag_off": "fragment_offset",
}
TRANSPORT_COLUMNS = {
    "tcp_flags": "tcp_flags",
    "tcp_seq": "seq",
    "tcp_ack": "ack",
    "tcp_win": "window",
    "tcp_hdr_len": "tcp_header_length",
    "icmp_type": "icmp_type",
    "icmp_code": "icmp_code",
}


def captures() -> list[Path]:
    """All captures that tshark's reading is there for; none where the folder is absent."""
    return sorted(path for path in PACKETS.glob("captures/**/*") if path.is_file() and truth_of(path).is_file())


def truth_of(capture: Path) -> Path:
    return PACKETS / "truth" / capture.relative_to(PACKETS / "captures").parent / f"{capture.name}.packets.csv.gz"


def tshark_columns(capture: Path) -> dict[str, list[str]]:
    """What tshark says, as text, a column a name."""
    with gzip.open(truth_of(capture), "rt", newline="") as file:
        reader = csv.reader(file)
        names = next(reader)
        return dict(zip(names, map(list, zip(*reader, strict=True)), strict=True))


def our_columns(index: PacketIndex, packets: Packets) -> dict[str, list[str]]:
    """What we say, in tshark's names and ways to write it; nothing where we have 0."""
    columns = {
        "ts_ns": text(index.time_ns),
        "interface": text(index.interface),
        "wire_len": text(index.wire),
        "cap_len": text(index.captured),
        "eth_type": text(packets.ethertype),
        "vlan_ids": list(_vlans(packets)),
        "mpls_labels": ["" if label == NO_LABEL else str(label) for label in packets.mpls_label.tolist()],
        "n_ip": text(packets.ip_headers),
        "tunnel": ["" if kind == Tunnel.NONE else Tunnel(kind).name.lower() for kind in packets.tunnel.tolist()],
        "tunnel_id": text(packets.tunnel_id),
    }
    for prefix, headers in (("o_", packets.outer), ("i_", packets.inner)):
        columns[prefix + "ver"] = text(headers.version)
        columns[prefix + "src"] = _addresses(headers, headers.src_high, headers.src_low)
        columns[prefix + "dst"] = _addresses(headers, headers.dst_high, headers.dst_low)
        columns |= {prefix + theirs: text(getattr(headers, ours)) for theirs, ours in HEADER_COLUMNS.items()}
    columns |= {theirs: text(getattr(packets.inner, ours)) for theirs, ours in TRANSPORT_COLUMNS.items()}
    payload = zip(packets.inner.payload_wire.tolist(), packets.inner.tcp_header_length.tolist(), strict=True)
    columns["tcp_payload_len"] = [str(size) if header and size else "" for size, header in payload]
    return columns


def plain(name: str, values: list[str]) -> list[str]:
    """A column of tshark's as we write it: the first label of a stack, signed times, nothing for 0."""
    if name == "mpls_labels":
        return [value.split("|")[0] for value in values]
    if name == "ts_ns":
        # A clock below 0, which tshark takes for one without a sign; 64 bits of nanoseconds hold the former alone.
        values = [str((int(value) + 2**63) % 2**64 - 2**63) for value in values]
    return ["" if value == "0" else value for value in values]


def text(values: Any) -> list[str]:
    return ["" if value == 0 else str(int(value)) for value in values.tolist()]


def _vlans(packets: Packets) -> Iterator[str]:
    for pair in zip(packets.vlan_outer.tolist(), packets.vlan_inner.tolist(), strict=True):
        yield "|".join(str(vlan) for vlan in pair if vlan != NO_VLAN)


def _addresses(headers: Headers, high: Any, low: Any) -> list[str]:
    rows: Iterable[tuple[int, int, int]] = zip(headers.version.tolist(), high.tolist(), low.tolist(), strict=True)
    return [_address(*row) for row in rows]


@cache
def _address(version: int, high: int, low: int) -> str:
    if not high and not low:
        return {0: "", 4: "0.0.0.0", 6: "::"}[version]
    return str(IPv4Address(low) if version == 4 else IPv6Address(high << 64 | low))
