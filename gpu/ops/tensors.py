"""matrix.put, matrix.get, matrix.free: tensors that stay with the worker, by key.

A call's subject ends in the partition of its key's group (`bus.subjects.partition`), so that all calls about a key
reach the worker that has it. An array larger than a frame is put and got in runs of its elements in C order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from ...bus.columns import FIXED, Array, Field, Schema
from ...bus.errors import BadParameter, BusError
from ..batch import Batch
from ..device import Device
from ..operation import Operation
from ..origin import Origin
from ..residents import Residents
from ..signature import Signature

ANY = "|".join(FIXED)
MAX_ELEMENTS = 1 << 40


class _Resident(Operation):
    """An operation on the residents of its engine.

    Attributes:
        residents: which all operations of one catalogue share.
    """

    endings = (".*",)

    def __init__(self, residents: Residents) -> None:
        self.residents = residents

    def load(self, device: Device) -> None:
        """Find what the engine before has left."""
        self.residents.open(device)

    def relieve(self) -> None:
        """Drop the copies that no batch uses."""
        self.residents.relieve()


class Put(_Resident):
    """Puts a tensor, or a run of its elements; it is there (`complete`) once all of them have come.

    Columns: the key `<group>.<name>`; the owner's token, which nobody needs to know who only reads; `version`, a number
    for this content (putting the same version again changes nothing, another takes its place); `start`, place of the
    first of the elements `x` in C order. Parameters: `shape` of the whole tensor (if absent, of `x`); `ttl_s`, how long
    it is kept after its last use (if absent, as the worker's settings say).
    """

    class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """What the rows of a batch have in common."""

        shape: tuple[int, ...] | None = None
        ttl_s: float | None = None

    name = "matrix.put"
    signature = Signature(
        {"key": "utf8", "owner": "utf8", "version": "u8", "start": "i8", "x": "T[...]"},
        {"complete": "bool"},
        {"T": ANY},
    )
    parameters = Parameters
    pure = False
    help = "Puts a tensor, or a run of its elements, under `key`."

    def figures(self) -> dict[str, float]:
        """Of all residents, told once."""
        return {f"residents_{name}": float(value) for name, value in self.residents.statistics().items()}

    def outputs(self, schema: Schema, parameters: Parameters) -> Schema:
        """As the signature says, if the shape is one."""
        if parameters.shape is not None:
            check_shape(parameters.shape)
        return super().outputs(schema, parameters)

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Write each row's elements to its tensor's file."""
        ((_, field),) = [column for column in batch.schema if column[0] == "x"]
        parameters: Put.Parameters = batch.parameters
        whole = Field(field.dtype, field.shape if parameters.shape is None else parameters.shape)
        ttl_s = self.residents.spec.ttl_s if parameters.ttl_s is None else parameters.ttl_s
        complete = np.zeros(batch.rows, np.bool_)
        elements, versions, starts = batch["x"], batch["version"].tolist(), batch["start"].tolist()
        for row, (key, owner) in enumerate(zip(batch["key"], batch["owner"], strict=True)):
            if row in batch.errors or not batch.checkpoint(slice(row, row + 1)):
                continue
            try:
                origin = Origin.make(whole, versions[row], owner, ttl_s)
                complete[row] = self.residents.origins.write(key, origin, starts[row], elements[row].reshape(-1))
            except BusError as error:
                batch.reject(row, error.code, str(error))
        return {"complete": complete}


class Get(_Resident):
    """Gets a tensor, or a run of its elements from `start` on in C order.

    Parameters, from the tensor's handle: `t`, its dtype, and `s`, the shape of the answer. `version` tells whether two
    runs are of one content.
    """

    class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """What the rows of a batch have in common."""

        t: str
        s: tuple[int, ...] = ()

    name = "matrix.get"
    signature = Signature({"key": "utf8", "start": "i8"}, {"x": f"{ANY}[...]", "version": "u8"})
    parameters = Parameters
    help = "Gets a tensor, or a run of its elements, by `key`."

    def outputs(self, schema: Schema, parameters: Parameters) -> Schema:
        """The elements as the parameters have them."""
        self.signature.check(schema)
        return (("x", field_of(parameters.t, parameters.s)), ("version", Field("u8")))

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Read each row's elements from its tensor's file."""
        field = field_of(batch.parameters.t, batch.parameters.s)
        found: Array = np.zeros((batch.rows, *field.shape), FIXED[field.dtype])
        versions = np.zeros(batch.rows, np.uint64)
        starts = batch["start"].tolist()
        for row, key in enumerate(batch["key"]):
            if row in batch.errors or not batch.checkpoint(slice(row, row + 1)):
                continue
            try:
                found[row], versions[row] = self.residents.origins.read(key, field, starts[row])
            except BusError as error:
                batch.reject(row, error.code, str(error))
        return {"x": found, "version": versions}


class Free(_Resident):
    """Drops a tensor; `freed` is false if there was none any more."""

    name = "matrix.free"
    signature = Signature({"key": "utf8", "owner": "utf8"}, {"freed": "bool"})
    pure = False

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Drop the tensors of those who may."""
        freed = np.zeros(batch.rows, np.bool_)
        for row, (key, owner) in enumerate(zip(batch["key"], batch["owner"], strict=True)):
            if row in batch.errors:
                continue
            try:
                freed[row] = self.residents.free(key, owner)
            except BusError as error:
                batch.reject(row, error.code, str(error))
        return {"freed": freed}


def operations(residents: Residents) -> list[Operation]:
    """The operations on the given residents."""
    return [Put(residents), Get(residents), Free(residents)]


def field_of(dtype: str, shape: tuple[int, ...]) -> Field:
    """A dtype and shape from somebody's parameters.

    Raises:
        BadParameter: there is no such dtype, or the shape is none.
    """
    if dtype not in FIXED:
        raise BadParameter(f"t is {dtype[:20]!r}: use one of {', '.join(FIXED)}")
    check_shape(shape)
    return Field(dtype, shape)


def check_shape(shape: tuple[int, ...]) -> None:
    """Raise BadParameter unless this is a shape that an array can have."""
    elements = 1
    for size in shape:
        if size < 0:
            raise BadParameter(f"shape {list(shape)}: a dimension cannot be negative")
        elements *= max(size, 1)
    if len(shape) > 31 or elements > MAX_ELEMENTS:
        raise BadParameter(f"a shape of {len(shape)} dimensions and {elements} elements: use at most 31 and 2^40")
