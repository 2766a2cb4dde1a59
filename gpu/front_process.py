"""A front as a process: `python -m aikoryu.gpu.front_process`, its `FrontSpec` the first line of standard input.

It says `ready` on what was its standard output when it serves, and drains and ends when standard input is closed. It
ignores interrupts and SIGTERM, which a terminal or service manager sends to every process: who started it decides.
"""

from __future__ import annotations

import sys

import uvloop

from ..bus.connection import NatsConnection
from ..bus.errors import BusError
from ..bus.options import ConnectOptions
from ..config import configure_logging
from .child_process import Parent
from .engine import EngineLink
from .engines import slab_bytes
from .fleet import FrontSpec, contexts_of
from .probes import why_not
from .worker import Worker

EXIT_NOT_DRAINED = 1
EXIT_NOT_STARTED = 2


def main() -> int:
    """Serve until standard input is closed; the exit code."""
    parent = Parent(FrontSpec)
    configure_logging(parent.spec.settings.log)
    return uvloop.run(_serve(parent))


async def _serve(parent: Parent[FrontSpec]) -> int:
    spec, settings = parent.spec, parent.spec.settings
    try:
        transport = await NatsConnection.open(ConnectOptions.of(settings.nats))
    except BusError as error:
        return _not_started(str(error))
    try:
        room = slab_bytes(settings, transport.max_payload)
        links = [EngineLink(each.address, each.name, each.slots, room) for each in spec.engines]
        worker = Worker(transport, settings, links)
        if settings.context.enabled:
            worker.telemetry.watch_contexts(lambda: contexts_of(parent.told))
        try:
            await worker.start()
        except BusError as error:
            return _not_started(str(error))
        except ConnectionError as error:
            return _not_started(f"an engine is gone: {error}")
        except OSError as error:
            return _not_started(why_not(settings.worker, error))
        parent.ready()
        await parent.wants_end()
        return 0 if await worker.stop() else EXIT_NOT_DRAINED
    finally:
        await transport.close()


def _not_started(why: str) -> int:
    print(f"Error: {why}", file=sys.stderr)
    return EXIT_NOT_STARTED


if __name__ == "__main__":
    sys.exit(main())
