"""The ledger: what became of every call."""

from __future__ import annotations

import msgspec
import numpy as np

from ...bus.columns import Array

BIN_S = 0.1
"""Width of a bin of the timeline, s."""


class Account(msgspec.Struct):
    """What became of the calls of some while.

    Attributes:
        calls: made.
        right, wrong: answered so; every answer is checked.
        twice: answered more than once.
        errors: calls that got an error, by its code: lost, as those without an answer are.
        longest_s: longest time from a call to its answer, s.
        answered: right answers in each bin of `BIN_S` from the start.
    """

    calls: int = 0
    right: int = 0
    wrong: int = 0
    twice: int = 0
    errors: dict[str, int] = {}
    longest_s: float = 0.0
    answered: list[int] = []

    @property
    def lost(self) -> int:
        """Calls that got no answer, errors among them."""
        return self.calls - self.right - self.wrong

    @property
    def clean(self) -> bool:
        """Whether calls were made, and each got its one right answer."""
        return self.calls > 0 and self.right == self.calls and not self.twice

    def add(self, other: Account) -> None:
        """Take another's calls in, bin by bin."""
        self.calls += other.calls
        self.right += other.right
        self.wrong += other.wrong
        self.twice += other.twice
        for code, count in other.errors.items():
            self.errors[code] = self.errors.get(code, 0) + count
        self.longest_s = max(self.longest_s, other.longest_s)
        longer = max(len(self.answered), len(other.answered))
        self.answered = [
            (self.answered[bin_] if bin_ < len(self.answered) else 0)
            + (other.answered[bin_] if bin_ < len(other.answered) else 0)
            for bin_ in range(longer)
        ]


class Ledger:
    """Keeps an account of calls by their number, so that a second answer to one is seen.

    Args:
        began_s: when the first bin begins, on the clock of the times given later, s.
    """

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._answers = bytearray()
        self._account = Account()

    @property
    def calls(self) -> int:
        """Calls made so far."""
        return self._account.calls

    def open(self, count: int) -> int:
        """Note calls that are being made; the number of the first."""
        first = self._account.calls
        self._account.calls += count
        self._answers += bytes(count)
        return first

    def answered(self, first: int, right: Array, sent_s: float, now_s: float) -> None:
        """Calls were answered.

        Args:
            first: number of the first of them.
            right: (calls,) bool, whether the answer is right.
            sent_s, now_s: when they were made, and answered, s.
        """
        count = len(right)
        marks = np.frombuffer(self._answers, np.uint8)[first : first + count]
        self._account.twice += int(np.count_nonzero(marks))
        fresh = marks == 0
        marks[:] = 1
        good = int(np.count_nonzero(right & fresh))
        self._account.right += good
        self._account.wrong += int(np.count_nonzero(fresh)) - good
        self._account.longest_s = max(self._account.longest_s, now_s - sent_s)
        bins, number = self._account.answered, int((now_s - self._began_s) / BIN_S)
        bins += [0] * (number + 1 - len(bins))
        bins[number] += good

    def failed(self, count: int, code: str) -> None:
        """Calls got an error."""
        self._account.errors[code] = self._account.errors.get(code, 0) + count

    def account(self) -> Account:
        """The account so far, a value of its own."""
        return msgspec.convert(msgspec.to_builtins(self._account), Account)
