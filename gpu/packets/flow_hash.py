"""Hashes of flows: the same for every packet of one direction of a flow, on every device."""

from __future__ import annotations

import numpy as np

from ...bus.columns import Array
from ...netio.keys import Keys
from ...netio.tuples import mixed


def flow_hashes(keys: Keys) -> Array:
    """A hash of addresses, ports and protocol of each key: (n,) uint64. What else a key says does not matter."""
    source_port, destination_port = keys.source_port.astype(np.uint64), keys.destination_port.astype(np.uint64)
    service = source_port << np.uint64(24) | destination_port << np.uint64(8) | keys.protocol
    return mixed((keys.source_high, keys.source_low, keys.destination_high, keys.destination_low, service))
