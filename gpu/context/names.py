"""Agents' names as numbers, given in the order in which they come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ...bus.columns import Array


class Names:
    """A number for each name; the same calls give the same numbers.

    Numbers that were dropped are given again, the lowest first, before any new one.

    Args:
        names: those of the first numbers.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = list(names)
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def find(self, names: Sequence[str]) -> Array:
        """(m,) int64, the numbers of names; -1 for those that have none."""
        get = self._numbers.get
        return np.fromiter((get(name, -1) for name in names), np.int64, len(names))

    def take(self, names: Sequence[str]) -> Array:
        """(m,) int64, the numbers of names, new ones for those that have none."""
        found = self.find(names)
        for row in (found < 0).nonzero()[0].tolist():
            name = names[row]
            number = self._numbers.get(name)  # it may be there twice
            found[row] = self._give(name) if number is None else number
        return found

    def of(self, numbers: Array) -> list[str]:
        """The names of (m,) int64 numbers."""
        names = self._names
        return [names[number] for number in numbers.tolist()]

    def drop(self, numbers: Array) -> list[str]:
        """Let names go, (m,) int64, each once; those are returned."""
        dropped = self.of(numbers)
        for name in dropped:
            del self._numbers[name]
        self._free.extend(numbers.tolist())
        self._free.sort(reverse=True)
        return dropped

    def _give(self, name: str) -> int:
        if self._free:
            number = self._free.pop()
            self._names[number] = name
        else:
            number = len(self._names)
            self._names.append(name)
        self._numbers[name] = number
        return number
