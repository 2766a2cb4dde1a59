"""What a worker's HTTP port says: whether its loop turns, whether it takes requests, and its metrics.

A thread serves it, so that a loop that hangs can be told of as well. What it reads of the worker are single values that
the loop replaces whole; it changes nothing.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from socketserver import TCPServer, ThreadingMixIn
from time import monotonic
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import msgspec
from prometheus_client import CollectorRegistry, make_wsgi_app

from ..config import WorkerSettings

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from .plan import Place

BEAT_S = 1.0
STUCK_S = 5.0  # a loop that has not turned for so long hangs
CLIENT_S = 10.0  # whoever connects and says nothing is let go
LOOK_S = 0.1  # how soon the thread notices that it is to end


class Readiness(msgspec.Struct, frozen=True):
    """Whether requests should be sent to a worker, and why not.

    Attributes:
        ready: they should.
        worker: "starting", "serving" or "stopping".
        loop: "turning", or "stuck" if it has not turned for `STUCK_S`.
        bus: "connected" or "lost".
        engines: "up" or "down", by device; one of them is enough.
    """

    ready: bool
    worker: str
    loop: str
    bus: str
    engines: dict[str, str]


def readiness(worker: str, age_s: float, connected: bool, places: Sequence[Place]) -> Readiness:
    """Decide whether a worker takes requests.

    Args:
        worker: what it is at.
        age_s: time since its loop last turned, s.
        connected: its connection stands.
        places: its engines, as its planner knows them.
    """
    up = [place.slots > 0 for place in places]
    turning = age_s < STUCK_S
    ready = worker == "serving" and turning and connected and any(up)
    engines: dict[str, str] = {}
    for place, takes in zip(places, up, strict=True):
        if engines.get(place.name) != "up":
            engines[place.name] = "up" if takes else "down"
    return Readiness(ready, worker, "turning" if turning else "stuck", "connected" if connected else "lost", engines)


class Probes:
    """Serves `/healthz`, `/readyz` and `/metrics`.

    Args:
        host, port: where; port 0 = nowhere.
        registry: the metrics.
        look: decides whether the worker is ready, given the time since its loop last turned, s; called in a thread.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, look: Callable[[float], Readiness]) -> None:
        self._host = host
        self._port = port
        self._look = look
        self._metrics = make_wsgi_app(registry)
        self._loop = asyncio.get_running_loop()
        self._turned = monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._serving: tuple[WSGIServer, threading.Thread] | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address is not this machine's, or the port is taken; `why_not` says it to a person.
        """
        if not self._port:
            return
        family, *_, address = socket.getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        server = _Server(address, _Handler, family)
        server.set_app(self._answer)
        thread = threading.Thread(target=server.serve_forever, args=[LOOK_S], name="aikoryu-probes", daemon=True)
        self._serving = server, thread
        thread.start()
        self._beat()

    async def stop(self) -> None:
        """Listen no more. Idempotent."""
        if self._serving is None:
            return
        (server, thread), self._serving = self._serving, None
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join()

    def _beat(self) -> None:
        self._turned = monotonic()
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            metrics: Iterable[bytes] = self._metrics(environ, start_response)
            return metrics
        age_s = monotonic() - self._turned
        body: Readiness | Mapping[str, Any]
        if path == "/healthz":
            well, body = age_s < STUCK_S, {"turned_s": round(age_s, 3)}
        elif path == "/readyz":
            body = self._look(age_s)
            well = body.ready
        else:
            start_response("404 Not Found", [])
            return []
        status = "200 OK" if well else "503 Service Unavailable"
        start_response(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
        return [msgspec.json.encode(body)]


def why_not(worker: WorkerSettings, error: OSError) -> str:
    """What a person whose probes cannot be served has to change."""
    of_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
    setting = f"metrics_port {worker.metrics_port}" if of_port else f"metrics_host {worker.metrics_host}"
    return f"worker.{setting}: {error.strerror}: set another one"


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a request: one that hangs holds up no other, nor the end."""

    daemon_threads = True

    def __init__(self, address: Any, handler: type[WSGIRequestHandler], family: int) -> None:
        self.address_family = family
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # The base asks the resolver for this machine's name, which can take many seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        # Whoever asked has gone, or said nothing in time.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(WSGIRequestHandler):
    """Logs nothing: probes come every few seconds."""

    timeout = CLIENT_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its base calls it so
        pass
