"""Silence: frames that nothing has been heard of are asked about, and are due again if no worker says it holds them.

Pure: time is an argument. `Resends` asks and sends.
"""

from __future__ import annotations

from collections.abc import Iterable

from .pending import Pending

QUIET_S = 1.0  # without a word, until workers are asked
ANSWER_S = 0.5  # that they have for it


def overdue(frames: Iterable[Pending], now: float) -> tuple[list[Pending], list[Pending]]:
    """The frames to ask about now, noted as asked, and those that nobody has answered for: to be sent again."""
    ask: list[Pending] = []
    again: list[Pending] = []
    for frame in frames:
        if not frame.heard:
            frame.heard = now
        elif frame.asked:
            if now - frame.asked >= ANSWER_S:
                again.append(frame)
        elif now - frame.heard >= QUIET_S:
            frame.asked = now
            frame.unserved = 0.0  # somebody took it
            ask.append(frame)
    return ask, again


def heard(frame: Pending, now: float) -> None:
    """A worker has the frame in hand."""
    frame.heard = now
    frame.asked = frame.unserved = 0.0


def closed_early(frame: Pending, now: float) -> None:
    """A worker has no more to say, and rows have no answer: parts of it are late, or lost, or another's to give."""
    if not frame.asked and frame.heard <= now:
        frame.heard = now - QUIET_S
