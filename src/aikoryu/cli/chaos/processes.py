"""Processes of a worker, found where the kernel lists them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from ...gpu.engine import EngineSpec
from ..failure import Failed

FRONT = "aikoryu.gpu.front_process"
ENGINE = "aikoryu.gpu.child"


def descendants(pid: int) -> Iterator[int]:
    """Processes that a process started, and those they did."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from descendants(child)


def fronts(pid: int) -> list[int]:
    """The worker's fronts, oldest first."""
    return sorted(child for child, arguments in _commands(pid) if FRONT in arguments)


def engine(pid: int, name: str) -> int:
    """The worker's engine of that name; of two processes, the one that serves.

    Raises:
        Failed: there is none.
    """
    specs = {child: arguments[-1] for child, arguments in _commands(pid) if ENGINE in arguments}
    named = [child for child, spec in specs.items() if msgspec.json.decode(spec, type=EngineSpec).called == name]
    if not named:
        raise Failed(f"the {name} engine is not running")
    return min(named)


def _commands(pid: int) -> Iterator[tuple[int, list[str]]]:
    """Its descendants, and how each was called."""
    for child in descendants(pid):
        with suppress(OSError):
            yield child, Path(f"/proc/{child}/cmdline").read_text().rstrip("\0").split("\0")


def kill(pid: int) -> None:
    """End a process as a crash would."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
