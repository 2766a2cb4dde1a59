"""Copies: a frame that the bus delivers twice is run once, as long as it is remembered."""

from __future__ import annotations

from .frames import Request

MOST_FRAMES = 16384  # of a generation, two of which are kept: 8 MiB at the most, 0.8 s of 20 000 frames a second


class Copies:
    """Remembers which frames came lately.

    A frame that its client sends again says so by a greater `again`: its answer may have been lost, so it is none.
    """

    def __init__(self) -> None:
        self._young: dict[tuple[int, int, str], int] = {}
        self._old: dict[tuple[int, int, str], int] = {}

    def is_copy(self, request: Request, reply: str) -> bool:
        """Whether this very frame, or one sent after it under its number, has come before; remembers it."""
        key = (request.client, request.id, reply)
        known = self._young.get(key)
        if known is None:
            known = self._old.get(key, -1)
        if request.again <= known:
            return True
        self._young[key] = request.again
        if len(self._young) >= MOST_FRAMES:
            self._old, self._young = self._young, {}
        return False
