"""What systemd is told of a service of `Type=notify`: that it serves, that it stops, that its loop turns.

Source: sd_notify(3) and sd_watchdog_enabled(3). Without the variables that systemd sets, nothing is told.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LONGEST_S = 1.0  # rather a lost word than a loop that hangs: the socket holds few, and systemd may be slow


def tell(state: str) -> None:
    """Send one assignment, `READY=1`; a service manager that does not listen is no reason to fail."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    name = f"\0{address[1:]}" if address[0] == "@" else address  # of the abstract namespace
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(LONGEST_S)
        sock.sendto(state.encode(), name)


@contextmanager
def watched() -> Iterator[None]:
    """Tell the watchdog, twice as often as it asks for, that this loop turns."""
    interval_s = _watchdog_s() / 2
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def turn() -> None:
        nonlocal timer
        tell("WATCHDOG=1")
        timer = loop.call_later(interval_s, turn)

    if interval_s:
        turn()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


def _watchdog_s() -> float:
    """How long the watchdog waits, s; 0 if there is none, or it is another process that it waits for."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    given = os.environ.get("WATCHDOG_USEC", "")
    return int(given) / 1e6 if given.isdecimal() else 0.0
