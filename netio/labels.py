"""Which protocol packets carry: by the first bytes of their payload, else by their ports, and how that was found.

Each packet is looked at alone. `of_flows` lets packets of one flow say the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from .flow_key import FlowKeys
from .packet_index import Array
from .packets import Headers
from .protocols import Protocol
from .signature_tables import tables_in
from .signatures import TCP, UDP


class How(IntEnum):
    """How a label was found, the surest last."""

    NONE = 0
    """It was not: the protocol is unknown."""
    PORT = 1
    """Guessed from a port."""
    SIGNATURE = 2
    """The first bytes of the payload look so."""
    HEADER = 3
    """The IP header names it."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What packets were found to be.

    Attributes:
        protocol: (n,) uint16, a `Protocol` each; 0 for none.
        how: (n,) uint8, a `How` each.
    """

    protocol: Array
    how: Array

    def __len__(self) -> int:
        return len(self.protocol)

    def titles(self) -> list[str]:
        """The usual name of each packet's protocol, empty for none."""
        return titles(self.protocol)

    def of_flows(self, keys: FlowKeys) -> Labels:
        """Each packet with the label of its flow: the first of its surest ones, because flows open with what they are.

        Args:
            keys: of the same packets, in the order in which they came.
        """
        order = np.lexsort((-self.how.astype(np.int8), *keys.words))
        words = keys.words[:, order]
        begins = np.ones(len(self), bool)
        begins[1:] = (words[:, 1:] != words[:, :-1]).any(axis=0)
        row = np.empty(len(self), np.int64)
        row[order] = order[begins][np.cumsum(begins) - 1]
        return Labels(self.protocol[row], self.how[row])


def titles(protocol: Array) -> list[str]:
    """The usual name of each `Protocol`, empty for none."""
    found: list[str] = _TITLES[protocol].tolist()
    return found


_TITLES = np.array([""] * (max(Protocol) + 1), object)
_TITLES[list(Protocol)] = [protocol.title for protocol in Protocol]


def label(blob: Array, offsets: Array, headers: Headers) -> Labels:
    """The protocols of packets.

    Args:
        blob: (m,) uint8, in which the packets lie.
        offsets: (n,) integers, first byte of each packet.
        headers: of the same packets, dissected: of those in tunnels, the inner ones say who talks, the outer ones what
            carries them.
    """
    protocol, how = labelled(blob, offsets, {name: getattr(headers, name) for name in COLUMNS})
    return Labels(protocol, how)


COLUMNS = ("version", "protocol", "fragment_offset", "sport", "dport", "payload_offset", "payload_captured")
"""Of the headers, what labels depend on."""


def labelled(blob: Any, offsets: Any, headers: dict[str, Any], xp: Any = np, device: Any = None) -> tuple[Any, Any]:
    """Protocol and how it was found, by columns; NumPy and torch give the same.

    Args:
        blob: (m,) uint8.
        offsets: (n,) integers, first byte of each packet.
        headers: `COLUMNS`, (n,) each.
        xp: the namespace of the arrays: NumPy or torch.
        device: torch's, where they are.

    Returns:
        (n,) uint16 and (n,) uint8.
    """
    tables = tables_in(xp, device)
    version, number, fragment, sport, dport, offset, captured = (
        xp.asarray(headers[name], dtype=xp.int64) for name in COLUMNS
    )
    protocol = xp.where(version > 0, tables.ip_protocols[number], 0)
    how = xp.where(protocol > 0, How.HEADER.value, How.NONE.value)
    at = xp.asarray(offsets, dtype=xp.int64) + offset
    for transport in (TCP, UDP):
        rows = xp.where((version > 0) & (number == transport) & (fragment == 0))[0]
        forms = tables.forms[transport]
        protocol[rows] = by_port = forms.guessed(sport[rows], dport[rows], xp)
        how[rows] = xp.where(by_port > 0, How.PORT.value, How.NONE.value)
        rows = rows[captured[rows] > 0]
        for first in range(0, len(rows), tables.block_rows):
            part = rows[first : first + tables.block_rows]
            seen = forms.seen(blob, at[part], captured[part], (sport[part], dport[part]), xp)
            protocol[part] = xp.where(seen > 0, seen, protocol[part])
            how[part] = xp.where(seen > 0, How.SIGNATURE.value, how[part])
    return xp.asarray(protocol, dtype=xp.uint16), xp.asarray(how, dtype=xp.uint8)
