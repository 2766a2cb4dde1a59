"""A front as a process: `python -m aikoryu.gpu.front_process`, its `FrontSpec` the first line of standard input.

It says `ready` on what was its standard output when it serves, and drains and ends when standard input is closed. It
ignores interrupts and SIGTERM, which a terminal or service manager sends to every process: who started it decides.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TextIO

import msgspec
import uvloop

from ..bus.connection import NatsConnection
from ..bus.errors import BusError
from ..bus.options import ConnectOptions
from ..config import configure_logging
from .engine import EngineLink
from .engines import slab_bytes
from .fleet import FrontSpec
from .lifetime import end_with_parent
from .probes import why_not
from .worker import Worker

EXIT_NOT_DRAINED = 1
EXIT_NOT_STARTED = 2


def main() -> int:
    """Serve until standard input is closed; the exit code."""
    end_with_parent()
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as told:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the user's modules print is no word for the fleet
        spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=FrontSpec)
        configure_logging(spec.settings.log)
        return uvloop.run(_serve(spec, told))


async def _serve(spec: FrontSpec, told: TextIO) -> int:
    settings = spec.settings
    try:
        transport = await NatsConnection.open(ConnectOptions.of(settings.nats))
    except BusError as error:
        return _not_started(str(error))
    try:
        room = slab_bytes(settings, transport.max_payload)
        links = [EngineLink(each.address, each.name, each.slots, room) for each in spec.engines]
        worker = Worker(transport, settings, links)
        try:
            await worker.start()
        except BusError as error:
            return _not_started(str(error))
        except ConnectionError as error:
            return _not_started(f"an engine is gone: {error}")
        except OSError as error:
            return _not_started(why_not(settings.worker, error))
        told.write("ready\n")
        told.close()
        await _closed()
        return 0 if await worker.stop() else EXIT_NOT_DRAINED
    finally:
        await transport.close()


def _not_started(why: str) -> int:
    print(f"Error: {why}", file=sys.stderr)
    return EXIT_NOT_STARTED


async def _closed() -> None:
    """Return when standard input is closed: the fleet asks for the end, or is gone."""
    reader = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.read()
    pipe.close()


if __name__ == "__main__":
    sys.exit(main())
