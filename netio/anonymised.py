"""Packets and flows whose addresses are those that an `Anonymiser` gives; all else stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .anonymise import Anonymiser
from .flows import Flows
from .packet_index import Array
from .packets import Headers, Packets


def anonymised_flows(flows: Flows, anonymiser: Anonymiser) -> Flows:
    """The same flows between other addresses."""
    source = _ends(flows.version, flows.source_high, flows.source_low, anonymiser)
    destination = _ends(flows.version, flows.destination_high, flows.destination_low, anonymiser)
    return replace(
        flows,
        source_high=source[0],
        source_low=source[1],
        destination_high=destination[0],
        destination_low=destination[1],
    )


def anonymised_packets(packets: Packets, anonymiser: Anonymiser) -> Packets:
    """The same columns with other addresses. The bytes that they were read from still hold the true ones."""
    outer = _headers(packets.outer, anonymiser)
    inner = outer if packets.inner is packets.outer else _headers(packets.inner, anonymiser)
    return replace(packets, outer=outer, inner=inner)


def _headers(headers: Headers, anonymiser: Anonymiser) -> Headers:
    source = _ends(headers.version, headers.src_high, headers.src_low, anonymiser)
    destination = _ends(headers.version, headers.dst_high, headers.dst_low, anonymiser)
    return replace(headers, src_high=source[0], src_low=source[1], dst_high=destination[0], dst_low=destination[1])


def _ends(version: Array, high: Array, low: Array, anonymiser: Anonymiser) -> tuple[Array, Array]:
    high, low = high.copy(), low.copy()
    four, six = np.flatnonzero(version == 4), np.flatnonzero(version == 6)
    low[four] = anonymiser.ipv4(low[four].astype(np.uint32))
    high[six], low[six] = anonymiser.ipv6(np.stack([high[six], low[six]], axis=1)).T
    return high, low
