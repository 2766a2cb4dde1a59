"""Raw packets into columns: a pass a kind of header over all packets that have one, never a loop over packets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .layers import link, network, tags, transport, tunnels, wireless
from .layers.kinds import Kind, tables
from .layers.walk import MAX_IP_HEADERS, MAX_TAGS, Rows, Walk
from .packet_index import Array
from .packets import HEADER_DTYPES, NO_LABEL, NO_VLAN, PACKET_DTYPES, Error, Headers, Packets

# Columns of a block fit the second cache.
BLOCK_PACKETS = 32768

HEADERS: dict[int, Callable[[Walk, Rows], None]] = {
    Kind.RADIOTAP: wireless.radiotap,
    Kind.WIFI: wireless.wifi,
    Kind.PADDED_WIFI: wireless.padded_wifi,
    Kind.SLL: link.sll,
    Kind.SLL2: link.sll2,
    Kind.NULL: link.null,
    Kind.LOOP: link.loop,
    Kind.HDLC: link.hdlc,
    Kind.ETHERNET: link.ethernet,
    Kind.LLC: link.llc,
    Kind.VLAN: tags.vlan,
    Kind.PPPOE: tags.pppoe,
    Kind.PPP: tags.ppp,
    Kind.MPLS: tags.mpls,
    Kind.RAW: link.raw,
    Kind.ARP: network.arp,
    Kind.IPV4: network.ipv4,
    Kind.IPV6: network.ipv6,
    Kind.EXTENSION: network.extension,
    Kind.TCP: transport.tcp,
    Kind.UDP: transport.udp,
    Kind.PORTS: transport.ports,
    Kind.ICMP: transport.icmp,
    Kind.GRE: tunnels.gre,
    Kind.VXLAN: tunnels.vxlan,
    Kind.GENEVE: tunnels.geneve,
    Kind.GTP: tunnels.gtp,
    Kind.TEREDO: tunnels.teredo,
    Kind.L2TP: tunnels.l2tp,
}

# Taken again at once: such headers come in stacks.
REPEATED = {Kind.VLAN, Kind.MPLS, Kind.EXTENSION}

# Each pass that leaves something to do has read a tag or an IP header of every packet that is left.
MAX_PASSES = MAX_IP_HEADERS + MAX_TAGS + 1


def dissect(
    blob: Array, offsets: Array, lengths: Array, links: Array, wire_lengths: Array | None = None, xp: Any = np
) -> Packets:
    """Reads the headers of packets, whatever their bytes: what is wrong with a packet is a number in `Packets.error`.

    Args:
        blob: (m,) uint8, in which the packets lie.
        offsets: (n,) integers, first byte of each packet.
        lengths: (n,) integers, bytes of each packet in `blob`; nothing beyond is read.
        links: (n,) uint16, link types.
        wire_lengths: (n,) integers, bytes of each packet on the wire; None = `lengths`.
        xp: the namespace of the arrays: NumPy, or one that speaks like it.
    """
    rows = len(offsets)
    columns = {name: xp.zeros(rows, dtype) for name, dtype in (PACKET_DTYPES | HEADER_DTYPES).items()}
    columns["link"][:] = links
    columns["vlan_outer"][:] = NO_VLAN
    columns["vlan_inner"][:] = NO_VLAN
    columns["mpls_label"][:] = NO_LABEL
    outer = []
    for first in range(0, rows, BLOCK_PACKETS):
        block = slice(first, first + BLOCK_PACKETS)
        at = xp.minimum(offsets[block], len(blob)).astype("i8")
        end = xp.minimum(at + lengths[block].astype("i8"), len(blob))
        limit = end if wire_lengths is None else xp.maximum(at + wire_lengths[block].astype("i8"), end)
        kind = tables(xp).links[links[block]]
        part = {name: column[block] for name, column in columns.items()}
        walk = Walk(blob, at, end, limit, kind, part, tables(xp), xp)
        _walk(walk)
        outer += [(numbers + first, values) for numbers, values in walk.outer]
    inner_headers = {name: columns.pop(name) for name in HEADER_DTYPES}
    outer_headers = inner_headers
    if outer:
        outer_headers = {name: column.copy() for name, column in inner_headers.items()}
        for numbers, values in outer:
            for name, column in outer_headers.items():
                column[numbers] = values[name]
    return Packets(**columns, outer=Headers(**outer_headers), inner=Headers(**inner_headers))


def _walk(walk: Walk) -> None:
    xp = walk.xp
    unknown = xp.flatnonzero(walk.kind == Kind.DONE)
    if len(unknown):
        walk.fail(unknown, Error.UNKNOWN_LINK)
    for _ in range(MAX_PASSES):
        for kind, read in HEADERS.items():
            rows = _having(walk, kind)
            while rows is not None:
                read(walk, rows)
                rows = _having(walk, kind) if kind in REPEATED else None
        walk.first = False
        if not walk.kind.any():
            break
    walk.finish()


def _having(walk: Walk, kind: int) -> Rows | None:
    """The packets whose next header is of a kind; None where there are none."""
    mask = walk.kind == kind
    count = int(walk.xp.count_nonzero(mask))
    if count == 0:
        return None
    rows: Rows = slice(None) if count == len(mask) else walk.xp.flatnonzero(mask)
    return rows
