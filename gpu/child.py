"""The engine process: `python -m aikoryu.gpu.child LIFELINE LISTENER SPEC`.

LIFELINE and LISTENER are sockets inherited from the host, SPEC is an `EngineSpec` in JSON. It serves when the host says
so, which may be long after it has loaded. It ends when the host closes the lifeline or dies, and ignores signals to
end: fronts drain first.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence

import msgspec
import structlog

from ..config import configure_logging
from .cuda import DeviceRefused
from .device import DeviceLost, open_device
from .engine import EngineSpec
from .executor import Executor, Running
from .faults import injector
from .intake import Handed, Intake
from .job import Begin, ControlSocket, Ready
from .lifetime import end_with_parent
from .registry import load
from .slab import TIME, Slab

REPORT_S = 1.0
SPIN_S = 0.0005  # a batch that runs longer is looked at now and then, not all the time
NAP_S = 0.00005
EXIT_FAILED = 1
EXIT_DEVICE_LOST = 70

_log = structlog.get_logger(__name__)


def main(lifeline_fd: str, listener_fd: str, spec_json: str) -> None:
    """Serve batches until the host closes the lifeline; after an error say so, and end with `EXIT_FAILED`."""
    try:
        _live(lifeline_fd, listener_fd, spec_json)
    except DeviceRefused as error:
        _fail(f"Error: {error}\n")
    except Exception:
        _fail(traceback.format_exc())


def _fail(told: str) -> None:
    """End with the lifeline still open: the host kills who closes it, and would see that death, not this one."""
    sys.stderr.write(told)
    sys.stderr.flush()
    os._exit(EXIT_FAILED)


def _live(lifeline_fd: str, listener_fd: str, spec_json: str) -> None:
    end_with_parent()
    spec = msgspec.json.decode(spec_json, type=EngineSpec)
    configure_logging(spec.log)
    lifeline = ControlSocket(socket.socket(fileno=int(lifeline_fd)))
    device = open_device(spec.device, spec.threads)
    operations = load(spec.catalogue)
    pulse = Slab.create(TIME.size)
    executor = Executor(operations, device, pulse)
    executor.load()
    gc.freeze()  # what is loaded stays: a collection of garbage would look at all of it, for 0.1 s
    lifeline.send(Ready(spec.device, os.getpid()))
    if not _told_to_begin(lifeline):
        return
    intake = Intake(lifeline, socket.socket(fileno=int(listener_fd)), device, executor.max_rows, pulse)
    figures = [executor.figures]
    if spec.faults:
        faults = injector(operations.values(), device)
        intake.on_inject = faults.take
        figures.append(faults.figures)
    try:
        _serve(intake, executor, spec.streams, figures)
    except DeviceLost as error:
        _log.critical("device lost", device=device.name, error=str(error))
        os._exit(EXIT_DEVICE_LOST)  # what is left of its context could hang an orderly end


def _told_to_begin(lifeline: ControlSocket) -> bool:
    """Wait for the host's word; false if it wants no engine any more."""
    try:
        return any(isinstance(message, Begin) for message in lifeline.receive())
    except EOFError:
        return False


def _serve(intake: Intake, executor: Executor, streams: int, figures: Sequence[Callable[[], dict[str, float]]]) -> None:
    """Take what waits while a stream is free, and answer what has ended, until the host closes the lifeline.

    One thread does it all: batches overlap on the device, where they were enqueued on different streams. While some
    run it looks at sockets and streams in turn, because nothing waits for both.
    """
    running: dict[int, tuple[list[Handed], Running]] = {}
    free = list(range(streams))
    alone = False
    reported = looked = time.monotonic()
    while not intake.ended:
        taken = intake.take(wait=not running) if free and not (alone and running) else []
        now = time.monotonic()
        if taken:
            stream = free.pop()
            alone = taken[0].job.alone
            running[stream] = taken, executor.start([handed.piece for handed in taken], stream)
            looked = now
        for stream, (handed, batch) in list(running.items()):
            if batch.done():
                del running[stream]
                free.append(stream)
                looked = now
                for each, done in zip(handed, batch.wait(), strict=True):
                    each.front.answer(done)
        if running and now - looked > SPIN_S:
            time.sleep(NAP_S)
        if now - reported > REPORT_S:
            reported = now
            intake.report({name: value for each in figures for name, value in each().items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
