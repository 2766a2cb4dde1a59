"""Processes of a worker, found where the kernel lists them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

FRONT = "aikoryu.gpu.front_process"
ENGINE = "aikoryu.gpu.child"


def descendants(pid: int) -> Iterator[int]:
    """Processes that a process started, and those they did."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from descendants(child)


def running(pid: int, module: str) -> list[int]:
    """Those among its descendants that run a module, oldest first."""
    found = []
    for child in descendants(pid):
        with suppress(OSError):
            if module in Path(f"/proc/{child}/cmdline").read_text().split("\0"):
                found.append(child)
    return sorted(found)


def kill(pid: int) -> None:
    """End a process as a crash would."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
