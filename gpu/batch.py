"""Batches: the rows of many callers, as an operation sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bus.columns import Array, Schema, Values
from .device import Device

if TYPE_CHECKING:
    import torch


class Abandoned(Exception):
    """Every caller of the batch has gone; the operation unwinds and nothing is answered."""


class Batch:
    """The rows of one batch.

    Attributes:
        rows: how many.
        schema: name and type of each input column.
        parameters: the operation's parameters Struct.
        alive: (rows,) bool; false for rows whose caller cancelled, expired or went away. The front writes it while the
            batch runs, so an operation may look again between steps.
        errors: code and message by row, filled by `reject`.
    """

    def __init__(
        self, rows: int, schema: Schema, columns: Mapping[str, Values], parameters: Any, alive: Array, device: Device
    ) -> None:
        self.rows = rows
        self.schema = schema
        self.parameters = parameters
        self.alive = alive
        self.errors: dict[int, tuple[str, str]] = {}
        self._columns = columns
        self._device = device

    def __getitem__(self, name: str) -> Any:
        """A column on the host: (rows, ...) array in shared memory (bf16 as its bits), or a list of str or bytes."""
        return self._columns[name]

    def tensor(self, name: str) -> torch.Tensor:
        """A column on the device, (rows, ...)."""
        return self._device.tensor(self[name], dict(self.schema)[name].dtype)

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
        if bool(np.any(self.alive[rows])):
            return True
        if not bool(np.any(self.alive)):
            raise Abandoned
        return False
