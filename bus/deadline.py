"""The deadline that calls inherit from what is being answered: who waits for that waits for them, and no longer."""

from __future__ import annotations

from contextvars import ContextVar
from math import floor, log10
from time import monotonic

from .errors import Expired

FOREVER = float("inf")

until: ContextVar[float] = ContextVar("aikoryu_until", default=FOREVER)
"""Monotonic time until which somebody waits for what this context does, s; it is infinite unless somebody does."""


def inherited_s(timeout_s: float) -> float:
    """How long a call may take that would wait for `timeout_s`, s.

    What is left is cut to two digits: calls of one moment with a deadline each still share a frame.

    Raises:
        Expired: nobody waits any more.
    """
    deadline = until.get()
    if deadline == FOREVER:
        return timeout_s
    left_s = deadline - monotonic()
    if left_s <= 0:
        raise Expired("the deadline of the call that is being answered has passed: nothing was sent")
    if left_s >= timeout_s:
        return timeout_s
    step = 10.0 ** (floor(log10(left_s)) - 1)
    return max(step, floor(left_s / step) * step)
