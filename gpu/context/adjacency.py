"""Rows of edges that grow where they lie: compressed rows with room at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LEAST_SPARE = 1024  # entries at the end


class Entries(NamedTuple):
    """The entries of some rows, row by row.

    Attributes:
        owner: (e,) int64, which of the rows asked for each belongs to, by its place among them.
        position: (e,) int64, where it lies.
    """

    owner: Tensor
    position: Tensor


class Adjacency:
    """The edges of every row, of which no two have the same other end.

    A row whose room is full moves to the end of the arrays, and gets half as much again; compaction lays all rows out
    in order, without room. So a row costs what it grows by, on average, and what is compact is plain CSR.

    Args:
        columns: what is known of an edge besides its other end, by name.
        place: the device.

    Attributes:
        start, count: (rows,) int64, where each row lies, and its edges.
        other: int32, the other end of each entry.
        columns: of the same length.
        total: edges of all rows.
        is_compact: row follows row, with nothing between them.
    """

    def __init__(self, columns: Mapping[str, torch.dtype], place: torch.device) -> None:
        import torch

        self.start = torch.empty(0, dtype=torch.int64, device=place)
        self.count = self.start
        self.other = torch.empty(0, dtype=torch.int32, device=place)
        self.columns = {name: torch.empty(0, dtype=dtype, device=place) for name, dtype in columns.items()}
        self.total = 0
        self.is_compact = True
        self._room = self.start
        self._used = 0

    def widen(self, rows: int) -> None:
        """Have so many rows, at least; new ones are empty, and lie at the end."""
        import torch

        more = max(rows - len(self.start), 0)
        self.start = torch.cat([self.start, self.start.new_full((more,), self._used)])
        self.count = torch.cat([self.count, self.count.new_zeros(more)])
        self._room = torch.cat([self._room, self._room.new_zeros(more)])

    def entries(self, rows: Tensor) -> Entries:
        """Where the edges of some rows lie, (m,) int64."""
        import torch

        count = self.count[rows]
        numbers = torch.arange(len(rows), device=rows.device)
        owner = torch.repeat_interleave(numbers, count)
        shift = self.start[rows] - (count.cumsum(0) - count)
        return Entries(owner, torch.arange(len(owner), device=rows.device) + shift[owner])

    def find(self, rows: Tensor, others: Tensor) -> Tensor:
        """(m,) int64, where the edges between (m,) rows and (m,) others lie; -1 for those that are not there.

        Each row is read once, however many of its edges are asked for.
        """
        import torch

        distinct, which = torch.unique(rows, return_inverse=True)
        owner, position = self.entries(distinct)
        if not len(owner):
            return torch.full_like(rows, -1)
        keys, order = ((owner << 32) | self.other[position]).sort()
        wanted = (which << 32) | others
        where = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return torch.where(keys[where] == wanted, position[order[where]], -1)

    def write(self, positions: Tensor, rows: Tensor, others: Tensor, values: Mapping[str, Tensor]) -> None:
        """Set edges, where `find` found them or as new ones; no two are the same.

        Args:
            positions: (m,) int64, what `find` says of them.
            rows, others: (m,) int64.
            values: (m,) of every column.
        """
        known = positions >= 0
        for name, value in values.items():
            self.columns[name][positions[known]] = value[known]
        self._append(rows[~known], others[~known], {name: value[~known] for name, value in values.items()})

    def compact(self, kept: Tensor | None = None, spare: int = 0) -> None:
        """Lay the rows out in order.

        Args:
            kept: bool by position, the edges that stay; all by default.
            spare: entries that are to follow.
        """
        import torch

        owner, position = self.entries(torch.arange(len(self.start), device=self.start.device))
        if kept is not None:
            stays = kept[position]
            owner, position = owner[stays], position[stays]
        self.count = torch.bincount(owner, minlength=len(self.start))
        self.start = self.count.cumsum(0) - self.count
        self._room = self.count.clone()
        self._used = self.total = len(position)
        length = len(position) + len(position) // 4 + spare + LEAST_SPARE
        self.other = _laid_out(self.other, position, length)
        self.columns = {name: _laid_out(column, position, length) for name, column in self.columns.items()}
        self.is_compact = True

    def _append(self, rows: Tensor, others: Tensor, values: Mapping[str, Tensor]) -> None:
        """Add edges that are not there."""
        import torch

        if not len(rows):
            return
        rows, order = rows.sort(stable=True)
        distinct, which, added = torch.unique_consecutive(rows, return_inverse=True, return_counts=True)
        self._make_room(distinct, self.count[distinct] + added)
        rank = torch.arange(len(rows), device=rows.device) - (added.cumsum(0) - added)[which]
        position = self.start[rows] + self.count[rows] + rank
        self.other[position] = others[order].int()
        for name, value in values.items():
            self.columns[name][position] = value[order]
        self.count[distinct] += added
        self.total += len(rows)
        self.is_compact = False

    def _make_room(self, rows: Tensor, needed: Tensor) -> None:
        """Move rows that have less room than is needed to the end."""
        room = needed + needed // 2
        tight = needed > self._room[rows]
        if self._used + int(room[tight].sum()) > len(self.other):
            self.compact(spare=int(room.sum()))
            tight = needed > self._room[rows]
        rows, room = rows[tight], room[tight]
        start = self._used + room.cumsum(0) - room
        owner, position = self.entries(rows)
        target = position + (start - self.start[rows])[owner]
        self.other[target] = self.other[position]
        for column in self.columns.values():
            column[target] = column[position]
        self.start[rows], self._room[rows] = start, room
        self._used += int(room.sum())


def _laid_out(column: Tensor, position: Tensor, length: int) -> Tensor:
    """The numbers at these positions, one after the other in an array of this length."""
    fresh = column.new_zeros(length)
    fresh[: len(position)] = column[position]
    return fresh
