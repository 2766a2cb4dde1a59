"""The keeper of context graphs as a process: `python -m aikoryu.gpu.context_process`, told as `child_process` says.

It has a connection of its own, and loads torch with the first graph that it opens. When its device is lost it ends at
once with `EXIT_DEVICE_LOST`; what it kept is in the graphs' logs.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

import msgspec
import structlog
import uvloop

from ..bus.connection import NatsConnection
from ..bus.errors import BusError
from ..bus.options import ConnectOptions
from ..bus.permissions import KEPT_APART
from ..config import Settings, configure_logging
from .child_process import Parent
from .context.keepers import Keepers
from .context_figures import TELL_S
from .context_host import EXIT_DEVICE_LOST, KeeperSpec
from .device import DeviceLost, open_device

EXIT_NOT_DRAINED = 1
EXIT_NOT_STARTED = 2
EXIT_FAILED = 3
SWITCH_S = 0.0002
"""After which the loop's thread lets the device's go on: this gives the interpreter away with each call of torch, and
waits to have it back. Of 128 at once on an H100's host a put took 12.8 ms with Python's 5 ms, with this 10.1."""

_log = structlog.get_logger(__name__)

T = TypeVar("T")


def main() -> int:
    """Serve until standard input is closed; the exit code."""
    parent = Parent(KeeperSpec)
    configure_logging(parent.spec.settings.log)
    sys.setswitchinterval(SWITCH_S)
    return uvloop.run(_serve(parent))


async def _serve(parent: Parent[KeeperSpec]) -> int:
    spec, settings = parent.spec, parent.spec.settings
    ended = asyncio.create_task(parent.wants_end())
    if spec.tries_device:
        trying = asyncio.create_task(asyncio.to_thread(_try, spec.device))
        await asyncio.wait({trying, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not trying.done():
            os._exit(EXIT_NOT_STARTED)
        if (error := trying.exception()) is not None:
            return _not_started(f"{spec.device} does not compute: {error}")
    try:
        transport = await NatsConnection.open(_options(settings))
    except BusError as error:
        return _not_started(str(error))
    try:
        # What torch brings along stays: a collection of garbage looks at all of it, for 0.1 s in which nothing goes on.
        keepers = Keepers(transport, settings, spec.device, spec.worker, on_loaded=gc.freeze)
        try:
            await keepers.start()
        except BusError as error:
            return _not_started(str(error))
        parent.ready()
        telling = asyncio.create_task(_tell(parent, keepers))
        try:
            await _unless_failed(ended, keepers)
            return 0 if await _unless_failed(asyncio.create_task(keepers.stop()), keepers) else EXIT_NOT_DRAINED
        finally:
            telling.cancel()
    finally:
        await transport.close()


async def _tell(parent: Parent[KeeperSpec], keepers: Keepers) -> None:
    """Tell the worker of the graphs, if anybody may ask it."""
    if parent.spec.settings.worker.metrics_port:
        await parent.keep_telling(lambda: msgspec.json.encode(keepers.figures) + b"\n", TELL_S)


async def _unless_failed(task: asyncio.Task[T], keepers: Keepers) -> T:
    """What a task comes to; if the device is lost first, this process ends."""
    either: tuple[asyncio.Future[Any], ...] = (task, keepers.failed)
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if keepers.failed.done() and (error := keepers.failed.exception()) is not None:
        _end_at_once(error)
    return await task


def _end_at_once(error: BaseException) -> NoReturn:
    """End this process; a thread that hangs on the device would hold up an orderly end."""
    if isinstance(error, DeviceLost):
        _log.critical("device lost", error=str(error))
    else:
        _log.critical("context keeper failed", exc_info=error)
    sys.stderr.flush()
    os._exit(EXIT_DEVICE_LOST if isinstance(error, DeviceLost) else EXIT_FAILED)


def _try(name: str) -> None:
    """Compute something on a device; raises what that raises, or loading torch."""
    import torch

    device = open_device(name, 1)
    device.open()
    torch.ones(1, device=device.place).sum().item()


def _options(settings: Settings) -> ConnectOptions:
    """How to connect: with an inbox apart from the worker's own, which no keeper may answer."""
    options = ConnectOptions.of(settings.nats)
    return replace(options, inbox_prefix=f"{options.inbox_prefix}.{KEPT_APART}")


def _not_started(why: str) -> int:
    print(f"Error: {why}", file=sys.stderr)
    return EXIT_NOT_STARTED


if __name__ == "__main__":
    sys.exit(main())
