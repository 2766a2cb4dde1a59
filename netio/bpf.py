"""Filters in the language of tcpdump, compiled by libpcap. Needs the extra `live`: `pip install 'aikoryu[live]'`."""

from __future__ import annotations

from typing import TypeAlias

from .errors import CannotCapture

SNAP_BYTES = 262144
"""What a filter that accepts a packet lets through of it."""

Program: TypeAlias = list[tuple[int, int, int, int]]
"""Instructions of the kernel's filter: code, two jumps, a number."""

MAY_NOT = "this process may not capture: run it as root, or with the capability CAP_NET_RAW"


def compiled(interface: str, text: str) -> Program:
    """The instructions of a filter.

    libpcap looks at the interface, because where a VLAN tag is to be found depends on it.

    Raises:
        CannotCapture: the text is no filter, libpcap is not there, or this process may not capture.
    """
    try:
        import cypcap
    except ImportError:
        raise CannotCapture("filters are compiled by libpcap: pip install 'aikoryu[live]'") from None
    try:
        with cypcap.create(interface) as handle:
            handle.set_snaplen(SNAP_BYTES)
            handle.set_buffer_size(1 << 20)
            handle.activate()
            return list(handle.compile(text, netmask=cypcap.NETMASK_UNKNOWN))
    except cypcap.Error as error:
        if error.code in (cypcap.ErrorCode.PERM_DENIED, cypcap.ErrorCode.PROMISC_PERM_DENIED):
            raise CannotCapture(MAY_NOT) from None
        if error.code != cypcap.ErrorCode.ERROR:
            raise CannotCapture(f"{interface}: {error.msg}") from None
        raise CannotCapture(f"{text!r} is no filter: {error.msg}; man pcap-filter tells the language") from None
