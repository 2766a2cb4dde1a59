"""A front as a process: `python -m aikoryu.gpu.front_process`, its `FrontSpec` the first line of standard input.

It says `ready` on standard output when it serves, and drains and ends when standard input is closed. It ignores
interrupts: who started it decides.
"""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys

import msgspec
import uvloop

from ..bus.connection import NatsConnection
from ..bus.errors import BusError
from ..bus.options import ConnectOptions
from ..config import configure_logging
from .engine import EngineLink
from .fleet import FrontSpec
from .worker import Worker, slab_bytes, slots_of

EXIT_NOT_DRAINED = 1
EXIT_NOT_STARTED = 2

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve until standard input is closed; the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=FrontSpec)
    configure_logging(spec.settings.log)
    return uvloop.run(_serve(spec))


async def _serve(spec: FrontSpec) -> int:
    settings = spec.settings
    try:
        transport = await NatsConnection.open(ConnectOptions.of(settings.nats))
    except BusError as error:
        print(f"Error: {error}", file=sys.stderr)
        return EXIT_NOT_STARTED
    try:
        engine = EngineLink(
            spec.address, spec.device, slots_of(settings, spec.device), slab_bytes(settings, transport.max_payload)
        )
        worker = Worker(transport, settings, engine)
        try:
            await worker.start()
        except (BusError, OSError) as error:
            print(f"Error: {error}", file=sys.stderr)
            return EXIT_NOT_STARTED
        print("ready", flush=True)
        await _closed()
        return 0 if await worker.stop() else EXIT_NOT_DRAINED
    finally:
        await transport.close()


async def _closed() -> None:
    """Return when standard input is closed: the fleet asks for the end, or is gone."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


if __name__ == "__main__":
    sys.exit(main())
