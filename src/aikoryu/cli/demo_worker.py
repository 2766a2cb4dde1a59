"""The demo's worker: what `aikoryu worker` runs, in a process of the demo."""

from __future__ import annotations

import asyncio
import sys

import msgspec

from ..bus.errors import BusError
from ..config import Settings, configure_logging
from .demo_process import be_child, tell
from .failure import Failed
from .serving import serve


class Ready(msgspec.Struct):
    """The worker takes requests."""

    worker: str


async def work(settings: Settings, asked: asyncio.Event) -> None:
    """Serve until asked to finish, and answer what was accepted."""
    configure_logging(settings.log)
    try:
        drained = await serve(settings, asked, lambda worker: tell(Ready(worker.id)))
    except (BusError, Failed) as error:
        sys.exit(f"worker: {error}")
    if not drained:
        sys.exit("worker: requests were left unanswered")


def main() -> None:
    """Be the process."""
    be_child(Settings, work)
