"""The engine process: `python -m aikoryu.gpu.child LIFELINE LISTENER SPEC`.

LIFELINE and LISTENER are sockets inherited from the host, SPEC is an `EngineSpec` in JSON. It ends when the host closes
the lifeline or dies, and ignores interrupts: fronts drain first.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time

import msgspec
import structlog

from ..config import configure_logging
from .device import Device, DeviceLost, open_device
from .engine import EngineSpec
from .executor import Executor
from .intake import Intake
from .job import ControlSocket, Ready
from .registry import load

REPORT_S = 1.0
EXIT_DEVICE_LOST = 70

_PR_SET_PDEATHSIG = 1
_log = structlog.get_logger(__name__)


def main(lifeline_fd: str, listener_fd: str, spec_json: str) -> None:
    """Serve batches until the host closes the lifeline."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    spec = msgspec.json.decode(spec_json, type=EngineSpec)
    configure_logging(spec.log)
    lifeline = ControlSocket(socket.socket(fileno=int(lifeline_fd)))
    device = open_device(spec.device, spec.threads)
    executor = Executor(load(spec.catalogue), device)
    executor.load()
    intake = Intake(lifeline, socket.socket(fileno=int(listener_fd)), device, executor.max_rows)
    lifeline.send(Ready(spec.device, os.getpid()))
    threads = [threading.Thread(target=_serve, args=(intake, executor, device)) for _ in range(spec.streams - 1)]
    for thread in threads:
        thread.start()
    _serve(intake, executor, device)
    for thread in threads:
        thread.join()


def _serve(intake: Intake, executor: Executor, device: Device) -> None:
    """One thread and stream of the engine: take what waits, run it, answer it."""
    reported = 0.0
    with device.stream():
        while taken := intake.take():
            try:
                ends = executor.run([handed.piece for handed in taken], intake.leave)
            except DeviceLost as error:
                _log.critical("device lost", device=device.name, error=str(error))
                os._exit(EXIT_DEVICE_LOST)  # its context is of no use any more, and other threads may hang in it
            for handed, done in zip(taken, ends, strict=True):
                handed.front.answer(done)
            intake.leave()
            now = time.monotonic()
            if now - reported > REPORT_S:
                reported = now
                intake.report(device.figures())
        intake.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
