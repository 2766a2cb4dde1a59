"""The engine process: `python -m aikoryu.gpu.child FDS SPEC`.

FDS are the control socket and the slabs, inherited from the front; SPEC is an `EngineSpec` in JSON. It ends when the
front closes the socket or dies, and ignores interrupts: the front drains first.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

import msgspec

from ..config import configure_logging
from .device import Device
from .engine import EngineSpec
from .executor import Executor, Piece
from .job import ControlSocket, Job, Ready
from .registry import load
from .slab import Slab

_PR_SET_PDEATHSIG = 1


def main(fds: str, spec_json: str) -> None:
    """Serve batches until the front closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    spec = msgspec.json.decode(spec_json, type=EngineSpec)
    configure_logging(spec.log)
    socket_fd, *slab_fds = map(int, fds.split(","))
    control = ControlSocket(socket.socket(fileno=socket_fd))
    slabs = [Slab(fd, spec.slab_bytes) for fd in slab_fds]
    executor = Executor(load(spec.catalogue), Device(spec.device, spec.threads))
    executor.load()
    try:
        control.send(Ready(spec.device, os.getpid()))
        while True:
            for message in control.receive():
                if isinstance(message, Job):
                    (done,) = executor.run([Piece(message, slabs[message.slab])])
                    control.send(done)
    except (EOFError, ConnectionError):
        return


if __name__ == "__main__":
    main(*sys.argv[1:])
