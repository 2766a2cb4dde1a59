"""How much may be done a second. Pure: time is an argument, s of a monotonic clock."""

from __future__ import annotations


class Allowance:
    """So much a second, and after a pause as much at once.

    Args:
        a_second: in whatever unit is taken.
    """

    def __init__(self, a_second: float) -> None:
        self._a_second = a_second
        self._left = a_second
        self._at = 0.0

    def take(self, amount: float, now: float) -> bool:
        """Whether this may be done now. One thing may be larger than what is left; the next then waits for it."""
        self._left = min(self._a_second, self._left + (now - self._at) * self._a_second)
        self._at = now
        if self._left <= 0:
            return False
        self._left -= amount
        return True
