"""The waiting room: how much waits, whose it is, and whose frames may still come in.

A client that asks for more than the worker does must not fill the queue for the others. Three rules, each of rows and
of bytes:

- A client that has been alone for `TOGETHER_S` may fill the room.
- Among others it may hold as much as it leaves free. So one that floods fills half the room, two fill a third each,
  and there is always room for one more (Choudhury and Hahne, "Dynamic queue length thresholds", 1998, factor 1).
- What is within the client's *share*, the room over the clients that have something in it and one more, comes in
  whatever the others did before: if it does not fit, the newest frames of clients above their share leave.

So a client within its share is never refused. If n clients share a room of Q that a frame would overfill, and its
client would hold no more than Q/(n + 1), the others hold more than Q - Q/(n + 1), and one of these n - 1 more than
Q/(n + 1): as long as the frame does not fit somebody is above his share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter

from .plan import Span

TOGETHER_S = 1.0


class Holding:
    """What one client has waiting.

    Attributes:
        client: its number.
        rows, bytes: waiting, those withdrawn not counted.
        used_s: time of the device that its rows took, on the scale of all clients, s.
    """

    __slots__ = ("bytes", "client", "rows", "used_s")

    def __init__(self, client: int, rows: int, size: int, used_s: float) -> None:
        self.client = client
        self.rows = rows
        self.bytes = size
        self.used_s = used_s


class Room:
    """What waits, by client.

    Attributes:
        rows, bytes: waiting, all clients together.
        holdings: by client; of those alone that have rows waiting.
        clock_s: what the client had used that was served last: where one that comes anew begins, s.
    """

    def __init__(self, most_rows: int, most_bytes: int) -> None:
        self.rows = 0
        self.bytes = 0
        self.holdings: dict[int, Holding] = {}
        self.clock_s = 0.0
        self._most_rows = most_rows
        self._most_bytes = most_bytes
        self._last: int | None = None  # who asked last
        self._together_until = float("-inf")
        self._found: list[Holding] = []  # clients that were above their share, the largest last

    def together(self, now: float) -> bool:
        """Whether several clients have asked lately."""
        return now < self._together_until

    def enter(self, client: int, rows: int, size: int, now: float) -> Holding | None:
        """A frame comes in, though others may have to leave; an empty room takes any one frame.

        Returns:
            What its client has in the room now; None if it may not come in.
        """
        if client != self._last:
            if self._last is not None:
                self._together_until = now + TOGETHER_S
            self._last = client
        holding = self.holdings.get(client)
        in_rows, in_bytes = self.rows + rows, self.bytes + size
        # While half the room is free nobody holds more than is free.
        if (2 * in_rows > self._most_rows or 2 * in_bytes > self._most_bytes) and self.rows:
            had_rows, had_bytes = (holding.rows, holding.bytes) if holding is not None else (0, 0)
            n = len(self.holdings) + (holding is None)
            if not self._may_hold(had_rows + rows, had_bytes + size, n, in_rows, in_bytes, now):
                return None
        self.rows = in_rows
        self.bytes = in_bytes
        if holding is None:
            holding = self.holdings[client] = Holding(client, rows, size, self.clock_s)
        else:
            holding.rows += rows
            holding.bytes += size
        return holding

    def above_share(self) -> Holding | None:
        """Whose newest frame leaves; None once what is here fits."""
        n = len(self.holdings)
        if n > 1 and self.rows > self._most_rows:
            return self._above(_rows_of, self._most_rows / (n + 1))
        if n > 1 and self.bytes > self._most_bytes:
            return self._above(_bytes_of, self._most_bytes / (n + 1))
        return None

    def leave(self, spans: Iterable[Span]) -> tuple[int, int]:
        """Rows do not wait any more.

        Returns:
            How many, and their bytes.
        """
        rows = size = 0
        for span in spans:
            count = span.count
            of_span = count * span.ticket.row_bytes
            holding = span.ticket.holding
            holding.rows -= count
            holding.bytes -= of_span
            if not holding.rows:
                del self.holdings[holding.client]
            rows += count
            size += of_span
        self.rows -= rows
        self.bytes -= size
        return rows, size

    def _may_hold(self, rows: int, size: int, n: int, in_rows: int, in_bytes: int, now: float) -> bool:
        """Whether one of n clients may hold so much, all of them together `in_rows` and `in_bytes`."""
        free_rows, free_bytes = self._most_rows - in_rows, self._most_bytes - in_bytes
        alone = not self.together(now)
        if free_rows >= 0 and free_bytes >= 0 and (alone or (rows <= free_rows and size <= free_bytes)):
            return True
        return rows * (n + 1) <= self._most_rows and size * (n + 1) <= self._most_bytes

    def _above(self, held: Callable[[Holding], int], share: float) -> Holding:
        """Some client above its share. All are looked at seldom: those found serve until none of them is left."""
        found = self._found
        while found and held(found[-1]) <= share:
            found.pop()
        if not found:
            found += sorted((holding for holding in self.holdings.values() if held(holding) > share), key=held)
        return found[-1]


_rows_of: Callable[[Holding], int] = attrgetter("rows")
_bytes_of: Callable[[Holding], int] = attrgetter("bytes")
