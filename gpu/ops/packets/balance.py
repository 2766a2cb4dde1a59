"""packets.balance: which back end takes each flow."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

import msgspec

from ....bus.columns import Schema
from ....bus.errors import BadParameter
from ....netio.maglev import SLOTS, BadBackends, MaglevTable
from ...batch import Batch
from ...device import Device
from ...operation import Operation
from ...packets import key_columns
from ...packets.flow_hash import flow_hashes
from ...signature import Signature

MOST_SLOTS = 1 << 20


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

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Look up each row's flow."""
        parameters: Balance.Parameters = batch.parameters
        table = _table(tuple(sorted(parameters.backends.items())), parameters.slots)
        return {"backend": table.lookup(flow_hashes(key_columns.keys_of(batch)))}


@lru_cache(maxsize=64)
def _table(weights: tuple[tuple[str, float], ...], slots: int) -> MaglevTable:
    try:
        return MaglevTable.of(dict(weights), slots)
    except BadBackends as error:
        raise BadParameter(str(error)) from None
