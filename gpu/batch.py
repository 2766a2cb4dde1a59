"""Batches: the rows of many callers, as an operation sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..bus.columns import Array, Schema
from .blobs import Blobs
from .device import Device

if TYPE_CHECKING:
    import torch


class Abandoned(Exception):
    """Every caller of the batch has gone; the operation unwinds and nothing is answered."""


Pieces: TypeAlias = "Array | tuple[Array, ...]"
"""One array, or several that follow each other along the first axis: what more than one front handed over."""


class Batch:
    """The rows of one batch.

    Attributes:
        rows: how many.
        schema: name and type of each input column.
        parameters: the operation's parameters Struct.
        errors: code and message by row, filled by `reject`.
    """

    def __init__(
        self,
        rows: int,
        schema: Schema,
        columns: Mapping[str, Pieces | Blobs | Sequence[str] | Sequence[bytes]],
        parameters: Any,
        alive: Pieces,
        device: Device,
    ) -> None:
        self.rows = rows
        self.schema = schema
        self.parameters = parameters
        self.errors: dict[int, tuple[str, str]] = {}
        self._columns = dict(columns)
        self._alive = alive
        self._device = device

    def __getitem__(self, name: str) -> Any:
        """A column on the host: (rows, ...) array in shared memory (bf16 as its bits), or a list of str or bytes."""
        column = self._columns[name]
        if isinstance(column, tuple):
            column = self._columns[name] = _joined(column)
        return column.rows if isinstance(column, Blobs) else column

    def packed(self, name: str) -> Blobs:
        """A `bin` column on the host, in shared memory: data and offsets, without an object a row."""
        column: Any = self._columns[name]
        return column if isinstance(column, Blobs) else Blobs.of(column)

    def tensor(self, name: str) -> torch.Tensor:
        """A column on the device, (rows, ...)."""
        column: Any = self._columns[name]
        return self._device.tensor(column, dict(self.schema)[name].dtype)

    @property
    def alive(self) -> Array:
        """(rows,) bool; false for rows whose caller cancelled, expired or went away.

        The front writes it while the batch runs, so an operation may look again between steps.
        """
        return _joined(self._alive) if isinstance(self._alive, tuple) else self._alive

    def part(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` as a batch of their own, of which none is dropped."""
        columns = {
            name: column.part(start, stop) if isinstance(column, Blobs) else self[name][start:stop]
            for name, column in self._columns.items()
        }
        rows = stop - start
        return Batch(rows, self.schema, columns, self.parameters, np.ones(rows, bool), self._device)

    def reject(self, row: int, code: str, message: str) -> None:
        """Answer one row with an error; its neighbours are not touched."""
        self.errors[row] = (code, message)

    def checkpoint(self, rows: Array | slice = slice(None)) -> bool:
        """Say between two steps whether the given rows still interest anybody.

        Args:
            rows: the rows the next step is for; all by default.

        Returns:
            False if none of these rows has a caller left, so the step may be skipped.

        Raises:
            Abandoned: no row of the whole batch has a caller left.
        """
        alive = self.alive
        if bool(np.any(alive[rows])):
            return True
        if not bool(np.any(alive)):
            raise Abandoned
        return False


def _joined(pieces: tuple[Array, ...]) -> Array:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
