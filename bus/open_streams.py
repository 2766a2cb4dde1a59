"""Streams that clients have opened on a worker: which there are, and how many rows of each may be unanswered.

The client's side is `stream.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import Busy

if TYPE_CHECKING:
    from .service import Endpoint

CREDIT_ROWS = 8192  # of one stream
MAX_STREAMS = 4096  # the one idle longest is forgotten beyond


@dataclass
class OpenStream:
    """A stream a client has opened on this worker.

    Attributes:
        endpoint: the operation its parts are for.
        open_rows: rows of it that are not answered yet.
        on_close: called when no part follows, or none is wanted.
        ticket: what its parts are for, kept here for whoever accepts them.
    """

    endpoint: Endpoint
    open_rows: int = 0
    on_close: Callable[[], None] = lambda: None
    ticket: Any = None

    def refusal(self, rows: int) -> Busy | None:
        """Why a part of so many rows is not taken now; None if it is."""
        if self.open_rows + rows <= CREDIT_ROWS:
            return None
        return Busy(f"more than the stream's credit of {CREDIT_ROWS} rows is unanswered")


class OpenStreams:
    """The streams open on one worker, known by their client and number."""

    def __init__(self) -> None:
        self._streams: OrderedDict[tuple[int, int], OpenStream] = OrderedDict()

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, client: int, number: int, endpoint: Endpoint) -> int:
        """Open a stream, anew if it is open; returns its credit, rows."""
        self.close(client, number)
        self._streams[client, number] = OpenStream(endpoint)
        if len(self._streams) > MAX_STREAMS:
            self.close(*next(iter(self._streams)))
        return CREDIT_ROWS

    def find(self, client: int, number: int) -> OpenStream | None:
        """The stream of a part that has come: it is idle no longer."""
        stream = self._streams.get((client, number))
        if stream is not None:
            self._streams.move_to_end((client, number))
        return stream

    def close(self, client: int, number: int) -> None:
        """No part follows, or none is wanted; what was taken is answered nevertheless."""
        stream = self._streams.pop((client, number), None)
        if stream is not None:
            stream.on_close()

    def close_of(self, client: int) -> None:
        """A client is gone: so are its streams."""
        for key in [key for key in self._streams if key[0] == client]:
            self.close(*key)
