"""Runs a coroutine on uvloop where it is installed, for every client and every Python peer alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

try:
    import uvloop

    _new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
except ImportError:
    _new_loop = asyncio.new_event_loop


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run to completion; Ctrl-C cancels it and ends the process quietly."""
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        try:
            runner.run(main)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
