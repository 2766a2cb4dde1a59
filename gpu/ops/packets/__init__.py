"""packets: raw packets into columns, rules and back ends. One file an operation; docs/packets.md tells of each."""

from __future__ import annotations

from ...operation import Operation
from .dissect import Dissect

__all__ = ["Dissect"]


def operations() -> list[Operation]:
    """The operations of the network system."""
    return [Dissect()]
