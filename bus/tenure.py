"""What a holder may believe of its lease. Pure: time is an argument, s of the holder's own monotonic clock.

The server counts a lease from when it stored the last renewal. The holder counts it from when it *sent* that renewal,
which is earlier, and less a margin; so it knows that it has lost the lease before the server gives it to another,
whether or not it hears anything.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

# Parts of the time to live.
MARGIN = 0.1  # the holder ends earlier by this: clocks may differ in rate, and what is under way must end
RENEW_AFTER = 1 / 3  # after the last renewal was sent
RETRY_AFTER = 0.1  # after a renewal that nobody answered
ANSWER_WITHIN = 0.2  # longest wait for the answer to a renewal


class Phase(Enum):
    """What a holder has to do."""

    HELD = "held"
    DUE = "due"
    LOST = "lost"


class Decision(NamedTuple):
    """Held: look again after `within_s`. Due: renew, and wait for the answer no longer than `within_s`. Lost: stop."""

    phase: Phase
    within_s: float


class Tenure:
    """One holder's time with a lease; once lost it stays lost.

    Args:
        ttl_s: how long the server keeps the lease after storing a renewal, s.
        sent_at: when the request that took the lease was sent, s.

    Attributes:
        reason: why it is lost; empty while it is held.
    """

    def __init__(self, ttl_s: float, sent_at: float) -> None:
        self.reason = ""
        self._ttl_s = ttl_s
        self._latest = sent_at
        self._sent_at = sent_at
        self._renew_at = sent_at + ttl_s * RENEW_AFTER

    @property
    def expires_at(self) -> float:
        """When the holder must stop, unless a renewal is acknowledged before, s."""
        return self._sent_at + self._ttl_s * (1 - MARGIN)

    def decide(self, now: float) -> Decision:
        """What to do at `now`; a clock that goes back, or past the end, ends the tenure."""
        if now < self._latest:
            # How much of the lease is over cannot be known any more.
            self.lose(f"its holder's clock went back by {self._latest - now:.3g} s")
        elif now >= self.expires_at:
            self.lose(f"no renewal was acknowledged for {now - self._sent_at:.3g} s of {self._ttl_s:g}")
        self._latest = max(self._latest, now)
        if self.reason:
            return Decision(Phase.LOST, 0.0)
        left_s = self.expires_at - now
        if now >= self._renew_at:
            return Decision(Phase.DUE, min(self._ttl_s * ANSWER_WITHIN, left_s))
        return Decision(Phase.HELD, min(self._renew_at - now, left_s))

    def renewed(self, sent_at: float) -> None:
        """The server acknowledged a renewal that was sent at `sent_at`."""
        self._sent_at = max(self._sent_at, sent_at)
        self._renew_at = self._sent_at + self._ttl_s * RENEW_AFTER

    def unanswered(self, now: float) -> None:
        """A renewal failed in a way that leaves open who holds the lease; it is tried again before the end."""
        self._renew_at = now + self._ttl_s * RETRY_AFTER

    def lose(self, reason: str) -> None:
        """It is over; the first reason stays."""
        self.reason = self.reason or reason
