"""Addresses as people write them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import numpy as np

from .packet_index import Array


def address_texts(version: Array, high: Array, low: Array) -> tuple[Array, Array]:
    """The text of each address, each different one once.

    Args:
        version: (n,) uint8, 4 or 6, or 0 for none.
        high, low: (n,) uint64, upper and lower half.

    Returns:
        The texts, (different,) object, and which of them each address has, (n,) int64. No address is empty.
    """
    rows = np.stack([version.astype(np.uint64), high, low], axis=1)
    different, back = np.unique(np.ascontiguousarray(rows).view("V24")[:, 0], return_inverse=True)
    texts = [_text(*row) for row in different.view(np.uint64).reshape(-1, 3).tolist()]
    return np.array(texts, object), back.reshape(-1)


def _text(version: int, high: int, low: int) -> str:
    if version == 4:
        return str(IPv4Address(low))
    return str(IPv6Address(high << 64 | low)) if version == 6 else ""
