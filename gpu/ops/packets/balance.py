"""packets.balance: which back end takes each flow."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from ....bus.columns import Schema
from ....bus.errors import BadParameter
from ....netio.maglev import SLOTS, BadBackends, MaglevTable
from ...batch import Batch
from ...device import Device
from ...operation import Operation
from ...packets import key_columns
from ...packets.flow_hash import flow_hashes
from ...packets.kernels import DeviceKeys, PacketKernels
from ...signature import Signature

if TYPE_CHECKING:
    from torch import Tensor

MOST_SLOTS = 1 << 20
MOST_TABLES = 64


class Balance(Operation):
    """Deals flows to back ends by a Maglev table: evenly by weight, and few move when back ends come and go.

    The answer is a place among the names of the back ends in alphabetical order. Directions of a flow are two flows.

    Source: `netio/maglev.py`.
    """

    class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """What the rows of a batch have in common.

        Attributes:
            backends: weights by name, 0 for one that is to get no flows.
            slots: of the table, a prime number; 100 for each back end keep shares within 1 %.
        """

        backends: dict[str, float]
        slots: Annotated[int, msgspec.Meta(ge=2, le=MOST_SLOTS)] = SLOTS

    name = "packets.balance"
    signature = Signature(key_columns.COLUMNS, {"backend": "i4"}, key_columns.TYPES, key_columns.OPTIONAL)
    parameters = Parameters
    help = "The back end of each flow: a place among the names of `backends`, weights by name, in order."

    def outputs(self, schema: Schema, parameters: Parameters) -> Schema:
        """As the signature says, of addresses that are some."""
        answer = self.signature.bind(schema)
        key_columns.check(schema)
        return answer

    def load(self, device: Device) -> None:
        """Compile the kernels, where there is a GPU."""
        self._kernels = PacketKernels.on(device)
        self._tables = lru_cache(maxsize=MOST_TABLES)(self._made)

    def relieve(self) -> None:
        """Let go of the tables."""
        self._tables.cache_clear()

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Look up each row's flow."""
        parameters: Balance.Parameters = batch.parameters
        table, slots = self._tables(tuple(sorted(parameters.backends.items())), parameters.slots)
        if self._kernels is not None and slots is not None:
            return {"backend": self._kernels.balance(DeviceKeys.of(batch), slots)}
        return {"backend": table.lookup(flow_hashes(key_columns.keys_of(batch)))}

    def _made(self, weights: tuple[tuple[str, float], ...], slots: int) -> tuple[MaglevTable, Tensor | None]:
        """A table, and its slots on the device."""
        try:
            table = MaglevTable.of(dict(weights), slots)
        except BadBackends as error:
            raise BadParameter(str(error)) from None
        return table, None if self._kernels is None else self._kernels.slots(table)
