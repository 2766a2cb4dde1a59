"""Keys of packets as requests bring them: addresses, ports, protocol, and what else rules look at."""

from __future__ import annotations

import numpy as np

from ...bus.columns import Array, Field, Schema
from ...bus.errors import BadColumn
from ...netio.keys import Keys
from ...netio.packets import NO_VLAN
from ..batch import Batch

COLUMNS = {
    "source": "A[half?]",
    "destination": "A[half?]",
    "source_port": "u2",
    "destination_port": "u2",
    "protocol": "u1",
    "version": "u1",
    "vlan": "u2",
    "tcp_flags": "u1",
}
"""Addresses are u4 for IPv4, or u8[2], upper and lower half, for IPv6; with `version` for both, IPv4 in the lower half.

Without `vlan` packets are untagged, without `tcp_flags` they have none.
"""

TYPES = {"A": "u4|u8"}
OPTIONAL = ("version", "vlan", "tcp_flags")
REQUIRED = tuple(name for name in COLUMNS if name not in OPTIONAL)

_ADDRESSES = (Field("u4"), Field("u8", (2,)))


def check(schema: Schema) -> None:
    """See to what a signature cannot say of the columns of keys.

    Raises:
        BadColumn: addresses are of another shape, or have a version that they do not need.
    """
    fields = dict(schema)
    address = fields["source"]
    if address not in _ADDRESSES:
        raise BadColumn(f"addresses are {address}: send u4 for IPv4, or u8[2], upper and lower half")
    if address == _ADDRESSES[0] and "version" in fields:
        raise BadColumn("addresses of u4 are IPv4: leave `version` out, or send them as u8[2]")


def keys_of(batch: Batch) -> Keys:
    """The keys of a batch."""
    there = dict(batch.schema)
    source, destination = _halves(batch["source"]), _halves(batch["destination"])
    version = 4 if there["source"] == _ADDRESSES[0] else 6
    return Keys(
        version=batch["version"] if "version" in there else np.full(batch.rows, version, np.uint8),
        source_high=source[0],
        source_low=source[1],
        destination_high=destination[0],
        destination_low=destination[1],
        source_port=batch["source_port"],
        destination_port=batch["destination_port"],
        protocol=batch["protocol"],
        vlan=batch["vlan"] if "vlan" in there else np.full(batch.rows, NO_VLAN, np.uint16),
        tcp_flags=batch["tcp_flags"] if "tcp_flags" in there else np.zeros(batch.rows, np.uint8),
    )


def _halves(addresses: Array) -> tuple[Array, Array]:
    """Upper and lower halves: (n,) uint64 each."""
    if addresses.ndim == 1:
        return np.zeros(len(addresses), np.uint64), addresses.astype(np.uint64)
    return np.ascontiguousarray(addresses[:, 0]), np.ascontiguousarray(addresses[:, 1])
