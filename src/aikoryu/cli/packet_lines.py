"""Dissected packets for people: a line each, as tshark's users know it, or an object of JSON."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from ..bus.columns import Array
from ..netio.labels import How, label, titles
from ..netio.packet_index import PacketIndex
from ..netio.packets import HEADER_DTYPES, NO_LABEL, NO_VLAN, Error, Headers, Packets, Tunnel

Line = tuple[str, ...]
"""Number, time, source, destination, protocol, length and what else is to be said."""

HEADING: Line = ("No.", "Time", "Source", "Destination", "Protocol", "Length", "Info")
ALIGN = ">><<<><"
WIDTHS = (6, 11, 15, 15, 8, 6, 0)
"""The least, so that the columns of short captures look alike."""

PROTOCOLS = {
    1: "ICMP",
    2: "IGMP",
    6: "TCP",
    17: "UDP",
    33: "DCCP",
    47: "GRE",
    50: "ESP",
    51: "AH",
    58: "ICMPv6",
    59: "IPv6",
    88: "EIGRP",
    89: "OSPF",
    103: "PIM",
    108: "IPComp",
    112: "VRRP",
    132: "SCTP",
    136: "UDPLite",
}
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
WITH_PORTS = (TCP, UDP, 33, 132, 136)
ETHERTYPES = {
    0x0800: "IPv4",
    0x0806: "ARP",
    0x8035: "RARP",
    0x8100: "802.1Q",
    0x86DD: "IPv6",
    0x8809: "LACP",
    0x8847: "MPLS",
    0x8848: "MPLS",
    0x8863: "PPPoED",
    0x8864: "PPPoES",
    0x888E: "EAPOL",
    0x88A8: "802.1ad",
    0x88CC: "LLDP",
    0x88E5: "MACsec",
    0x88F7: "PTP",
}
LINKS = {0: "Null", 1: "LLC", 9: "PPP", 50: "PPP", 104: "HDLC", 105: "802.11", 127: "802.11"}
MESSAGES = {
    (ICMP, 0): "Echo reply",
    (ICMP, 3): "Destination unreachable",
    (ICMP, 5): "Redirect",
    (ICMP, 8): "Echo request",
    (ICMP, 11): "Time exceeded",
    (ICMP, 12): "Parameter problem",
    (ICMP6, 1): "Destination unreachable",
    (ICMP6, 2): "Packet too big",
    (ICMP6, 3): "Time exceeded",
    (ICMP6, 4): "Parameter problem",
    (ICMP6, 128): "Echo request",
    (ICMP6, 129): "Echo reply",
    (ICMP6, 133): "Router solicitation",
    (ICMP6, 134): "Router advertisement",
    (ICMP6, 135): "Neighbor solicitation",
    (ICMP6, 136): "Neighbor advertisement",
    (ICMP6, 143): "Multicast listener report",
}
FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "AE")
TUNNELS = {
    Tunnel.IP: "IP in IP",
    Tunnel.GRE: "GRE",
    Tunnel.VXLAN: "VXLAN",
    Tunnel.GENEVE: "Geneve",
    Tunnel.GTP: "GTP-U",
    Tunnel.TEREDO: "Teredo",
    Tunnel.L2TP: "L2TP",
}
ERRORS = {
    Error.TRUNCATED: "cut short",
    Error.BAD_LENGTH: "a length is wrong",
    Error.BAD_VERSION: "wrong IP version",
    Error.LOOP_LIMIT: "too many headers",
    Error.UNKNOWN_LINK: "unknown link type",
}
ETHERNET = 1
SECOND = 10**9


def lines(blob: Array, index: PacketIndex, packets: Packets, first: int, since_ns: int) -> Iterator[Line]:
    """A line a packet, about its innermost IP header.

    Its protocol is what the first bytes of the payload say, else that of the header; nothing is guessed from ports.

    Args:
        blob: in which the packets lie.
        index: where they lie.
        packets: what they are.
        first: number of the first one.
        since_ns: the time that is 0, ns since 1970.
    """
    rows = _rows(packets)
    inner = _headers(packets.inner)
    places = zip(index.offset.tolist(), index.captured.tolist(), strict=True)
    times = zip(index.time_ns.tolist(), index.timed.tolist(), index.wire.tolist(), strict=True)
    labels = label(blob, index.offset, packets.inner)
    seen = titles(labels.protocol * (labels.how == How.SIGNATURE))
    for number, (row, header, place, (time_ns, timed, wire), title) in enumerate(
        zip(rows, inner, places, times, seen, strict=True), first
    ):
        if header["version"]:
            source, destination = _address(header, "src"), _address(header, "dst")
        else:
            source, destination = _stations(blob, *place) if row["link"] == ETHERNET else ("", "")
        time = f"{(time_ns - since_ns) / SECOND:.6f}" if timed else ""
        yield f"{number}", time, source, destination, title or _protocol(row, header), f"{wire}", _info(row, header)


def objects(blob: Array, index: PacketIndex, packets: Packets, first: int) -> Iterator[dict[str, Any]]:
    """An object a packet: what was read of it, `inner` where it is in a tunnel; what a packet lacks is left out.

    `label` is the protocol of the innermost payload, and `label_how` says whether a `signature`, a `port` or the IP
    `header` told it.
    """
    labels = label(blob, index.offset, packets.inner)
    hows = [How(how).name.lower() for how in labels.how.tolist()]
    rows, outer, inner = _rows(packets), _headers(packets.outer), _headers(packets.inner)
    captured = zip(
        index.time_ns.tolist(), index.timed.tolist(), index.wire.tolist(), index.captured.tolist(), strict=True
    )
    for number, (row, outside, inside, (time_ns, timed, wire, size), title, how) in enumerate(
        zip(rows, outer, inner, captured, labels.titles(), hows, strict=True), first
    ):
        found: dict[str, Any] = {"number": number}
        found |= {"time_ns": time_ns} if timed else {}
        found |= {"wire": wire, "captured": size, **_said(row)}
        if row["error"]:
            found["error"] = Error(row["error"]).name.lower()
        if outside["version"]:
            found["outer"] = _header_object(outside)
        if row["ip_headers"] > 1:
            found["tunnel"] = Tunnel(row["tunnel"]).name.lower()
            found["inner"] = _header_object(inside)
        if title:
            found |= {"label": title, "label_how": how}
        yield found


def _rows(packets: Packets) -> Iterator[dict[str, Any]]:
    names = (
        "link",
        "ethertype",
        "vlan_outer",
        "vlan_inner",
        "mpls_label",
        "tunnel",
        "tunnel_id",
        "ip_headers",
        "error",
    )
    return (
        dict(zip(names, row, strict=True)) for row in zip(*(getattr(packets, n).tolist() for n in names), strict=True)
    )


def _headers(headers: Headers) -> Iterator[dict[str, Any]]:
    columns = (getattr(headers, name).tolist() for name in HEADER_DTYPES)
    return (dict(zip(HEADER_DTYPES, row, strict=True)) for row in zip(*columns, strict=True))


def _said(row: dict[str, Any]) -> dict[str, Any]:
    """What the link layer says, where it says something."""
    lacking = {"vlan_outer": NO_VLAN, "vlan_inner": NO_VLAN, "mpls_label": NO_LABEL}
    names = ("link", "ethertype", *lacking, "tunnel_id", "ip_headers")
    return {name: row[name] for name in names if row[name] != lacking.get(name, 0) or name == "link"}


def _header_object(header: dict[str, Any]) -> dict[str, Any]:
    skipped = ("src_high", "src_low", "dst_high", "dst_low")
    kept = {name: value for name, value in header.items() if name not in skipped}
    if header["protocol"] != TCP:
        kept = {n: v for n, v in kept.items() if n not in ("seq", "ack", "window", "tcp_flags", "tcp_header_length")}
    if header["protocol"] not in (ICMP, ICMP6):
        kept = {n: v for n, v in kept.items() if n not in ("icmp_type", "icmp_code")}
    if header["protocol"] not in WITH_PORTS:
        kept = {n: v for n, v in kept.items() if n not in ("sport", "dport")}
    return {"version": kept.pop("version"), "src": _address(header, "src"), "dst": _address(header, "dst"), **kept}


def _address(header: dict[str, Any], side: str) -> str:
    if header["version"] == 4:
        return socket.inet_ntop(socket.AF_INET, header[f"{side}_low"].to_bytes(4))
    return socket.inet_ntop(socket.AF_INET6, (header[f"{side}_high"] << 64 | header[f"{side}_low"]).to_bytes(16))


def _stations(blob: Array, offset: int, captured: int) -> tuple[str, str]:
    """Source and destination of an Ethernet frame."""
    if captured < 12:
        return "", ""
    head = blob[offset : offset + 12].tobytes()
    return head[6:].hex(":"), head[:6].hex(":")


def _protocol(row: dict[str, Any], header: dict[str, Any]) -> str:
    if header["version"]:
        if header["fragment_offset"]:
            return f"IPv{header['version']}"
        return PROTOCOLS.get(header["protocol"], f"IP {header['protocol']}")
    if row["ethertype"]:
        return ETHERTYPES.get(row["ethertype"], f"0x{row['ethertype']:04x}")
    return LINKS.get(row["link"], f"link {row['link']}")


def _info(row: dict[str, Any], header: dict[str, Any]) -> str:
    words = []
    if row["error"]:
        words.append(f"[{ERRORS[row['error']]}]")
    vlans = [str(row[name]) for name in ("vlan_outer", "vlan_inner") if row[name] != NO_VLAN]
    if vlans:
        words.append(f"VLAN {'/'.join(vlans)}")
    if row["mpls_label"] != NO_LABEL:
        words.append(f"MPLS {row['mpls_label']}")
    if row["tunnel"]:
        words.append(TUNNELS[row["tunnel"]] + (f" {row['tunnel_id']}" if row["tunnel_id"] else ""))
    if header["version"]:
        words.append(_transport(header))
    return "  ".join(filter(None, words))


def _transport(header: dict[str, Any]) -> str:
    protocol = header["protocol"]
    size = header["payload_wire"]
    if header["fragment_offset"]:
        of = PROTOCOLS.get(protocol, f"protocol {protocol}")
        return f"Fragment of {of} at byte {header['fragment_offset']}" + (
            ", more follow" if header["more_fragments"] else ""
        )
    first = "First fragment  " if header["more_fragments"] else ""
    if protocol in (ICMP, ICMP6):
        kind, code = header["icmp_type"], header["icmp_code"]
        return first + MESSAGES.get((protocol, kind), f"Type {kind}") + (f" (code {code})" if code else "")
    if protocol == TCP:
        set_ = ", ".join(name for bit, name in enumerate(FLAGS) if header["tcp_flags"] >> bit & 1) or "no flags"
        ack = f" Ack={header['ack']}" if header["tcp_flags"] & 0x10 else ""
        numbers = f"Seq={header['seq']}{ack} Win={header['window']} Len={size}"
        return f"{first}{header['sport']} → {header['dport']} [{set_}] {numbers}"
    if protocol in WITH_PORTS:
        return f"{first}{header['sport']} → {header['dport']} Len={size}"
    return f"{first}Len={size}"
