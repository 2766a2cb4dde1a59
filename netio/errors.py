"""What can go wrong with captures, rule sets and flows: one class a wire code."""

from __future__ import annotations

from typing import ClassVar


class NetError(Exception):
    """Base of everything the network system raises; `code` is the stable wire code."""

    code: ClassVar[str] = "net_error"


class BadCapture(NetError):
    """The file is no pcap or pcapng capture, or its first header is damaged. Whoever named the file must act."""

    code = "bad_capture"


class CannotCapture(NetError):
    """Packets of an interface cannot be had. Nothing stays open; the message says who must act."""

    code = "cannot_capture"
