"""Streams that clients have opened on a worker: which there are, and how many rows of each may be unanswered.

The client's side is `stream.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from .errors import Busy

if TYPE_CHECKING:
    from .service import Endpoint

CREDIT_ROWS = 8192  # of one stream
MAX_STREAMS = 4096  # beyond, one of the client that has the most is forgotten, so that who opens many closes its own

_log = structlog.get_logger(__name__)


@dataclass
class OpenStream:
    """A stream a client has opened on this worker.

    Attributes:
        endpoint: the operation its parts are for.
        open_rows: rows of it that are not answered yet.
        on_close: called when no part follows, none is wanted, or it is forgotten.
        forgotten: it was closed because too many were open: its client does not know that yet.
        ticket: what its parts are for, kept here for whoever accepts them.
    """

    endpoint: Endpoint
    open_rows: int = 0
    on_close: Callable[[], None] = lambda: None
    forgotten: bool = False
    ticket: Any = None

    def refusal(self, rows: int) -> Busy | None:
        """Why a part of so many rows is not taken now; None if it is."""
        if self.open_rows + rows <= CREDIT_ROWS:
            return None
        return Busy(f"more than the stream's credit of {CREDIT_ROWS} rows is unanswered")


class OpenStreams:
    """The streams open on one worker, known by their client and number.

    Attributes:
        forgotten: streams that were closed because there were too many; their parts get `bad_frame`.
    """

    def __init__(self) -> None:
        self.forgotten = 0
        self._count = 0
        # Clients, and the streams of each, from the one idle longest on.
        self._clients: OrderedDict[int, OrderedDict[int, OpenStream]] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def open(self, client: int, number: int, endpoint: Endpoint) -> int:
        """Open a stream, anew if it is open; returns its credit, rows."""
        self.close(client, number)
        self._clients.setdefault(client, OrderedDict())[number] = OpenStream(endpoint)
        self._clients.move_to_end(client)
        self._count += 1
        if self._count > MAX_STREAMS:
            self._forget_one()
        return CREDIT_ROWS

    def find(self, client: int, number: int) -> OpenStream | None:
        """The stream of a part that has come: it is idle no longer."""
        streams = self._clients.get(client)
        stream = None if streams is None else streams.get(number)
        if streams is not None and stream is not None:
            streams.move_to_end(number)
            self._clients.move_to_end(client)
        return stream

    def close(self, client: int, number: int) -> None:
        """No part follows, or none is wanted; what was taken is answered nevertheless."""
        streams = self._clients.get(client)
        stream = None if streams is None else streams.pop(number, None)
        if stream is not None:
            self._count -= 1
            if not streams:
                del self._clients[client]
            stream.on_close()

    def close_of(self, client: int) -> None:
        """A client is gone: so are its streams."""
        for number in list(self._clients.get(client, ())):
            self.close(client, number)

    def _forget_one(self) -> None:
        """Close the stream idle longest of the client that has the most; of several such, the client idle longest."""
        self.forgotten += 1
        if self.forgotten & (self.forgotten - 1) == 0:  # the 1st, 2nd, 4th, 8th
            _log.warning("stream forgotten: too many are open", count=self.forgotten, open=MAX_STREAMS)
        client = max(self._clients, key=lambda each: len(self._clients[each]))
        number, stream = next(iter(self._clients[client].items()))
        stream.forgotten = True
        self.close(client, number)
