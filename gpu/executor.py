"""The executor: runs one batch that lies in a slab, and lays the answer beside it.

The same code runs in an engine process and in the in-process engine of the tests.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import structlog

from ..bus.columns import FIXED, OFFSET, VARIABLE, Array, Column, Schema, Values, pack_strings
from ..bus.errors import BadValue, BusError, Cancelled, OperationFailed, TooLarge
from .batch import Abandoned, Batch
from .device import Device
from .job import Done, Job, Part
from .operation import Operation
from .slab import Slab, align

MAX_BOUND = 4096  # answers' schemas remembered

_log = structlog.get_logger(__name__)


class Executor:
    """Runs batches of the given operations on one device."""

    def __init__(self, operations: Mapping[str, Operation], device: Device) -> None:
        self._operations = operations
        self._device = device
        self._bound: dict[tuple[str, Schema, bytes], Schema] = {}

    def load(self) -> None:
        """Claim the device and let every operation make ready."""
        self._device.open()
        for operation in self._operations.values():
            operation.load(self._device)

    def run(self, job: Job, slab: Slab) -> Done:
        """Run a batch; whatever happens in the operation becomes part of the answer."""
        started = time.perf_counter()
        try:
            batch = self._open(job, slab)
            answer = self._operations[job.operation].run(batch, self._device)
            parts = self._write(job, slab, batch, answer)
        except Abandoned:
            return _failed(job, started, Cancelled("every caller of the batch withdrew"))
        except BusError as error:
            return _failed(job, started, error)
        except Exception as error:
            _log.exception("operation failed", operation=job.operation, rows=job.rows)
            message = f"{job.operation} raised {type(error).__name__}; the worker's log holds the traceback"
            return _failed(job, started, OperationFailed(message))
        errors = [(row, code, message) for row, (code, message) in sorted(batch.errors.items())]
        return Done(job.id, parts, errors, _since_us(started))

    def _open(self, job: Job, slab: Slab) -> Batch:
        """The job's columns as arrays over the slab, and lists of strings."""
        rejected: dict[int, str] = {}
        columns = {part.name: _read(part, job.rows, slab, rejected) for part in job.parts}
        schema = tuple((part.name, part.field) for part in job.parts)
        parameters = msgspec.msgpack.decode(job.parameters, type=self._operations[job.operation].parameters)
        alive = slab.array(job.alive, np.dtype("?"), (job.rows,))
        batch = Batch(job.rows, schema, columns, parameters, alive, self._device)
        for row, message in rejected.items():
            batch.reject(row, BadValue.code, message)
        return batch

    def _write(self, job: Job, slab: Slab, batch: Batch, answer: Mapping[str, Any]) -> list[Part]:
        """Lay the answer's columns into the slab; what lies there already stays where it is."""
        free = align(job.free)
        parts: list[Part] = []
        for name, field in self._outputs(job, batch):
            value = answer[name]
            if len(value) != job.rows:
                raise ValueError(f"column {name!r} has {len(value)} rows, the batch {job.rows}")
            if field.dtype in VARIABLE:
                column = _packed(name, value)
                if column.t != field.dtype:
                    raise ValueError(f"column {name!r} is {column.t}, declared as {field}")
                offsets_at, free = _place(slab, free, np.frombuffer(column.o or b"", OFFSET))
                data_at, free = _place(slab, free, np.frombuffer(column.d, np.uint8))
                parts.append(Part(name, field, data_at, len(column.d), offsets_at))
                continue
            array = self._device.host(value)
            if array.dtype != FIXED[field.dtype] or array.shape[1:] != field.shape:
                raise ValueError(f"column {name!r} is {array.dtype} {array.shape[1:]} a row, declared as {field}")
            at = slab.offset_of(array)
            if at is None:
                at, free = _place(slab, free, array)
            parts.append(Part(name, field, at, array.nbytes))
        return parts

    def _outputs(self, job: Job, batch: Batch) -> Schema:
        key = (job.operation, batch.schema, job.parameters)
        if key not in self._bound:
            if len(self._bound) >= MAX_BOUND:
                self._bound.clear()
            self._bound[key] = self._operations[job.operation].outputs(batch.schema, batch.parameters)
        return self._bound[key]


def _read(part: Part, rows: int, slab: Slab, rejected: dict[int, str]) -> Values:
    if part.field.dtype not in VARIABLE:
        return slab.array(part.data, FIXED[part.field.dtype], (rows, *part.field.shape))
    ends = slab.array(part.offsets, OFFSET, (rows + 1,)).tolist()
    data = slab.view[part.data : part.data + part.data_bytes]
    blobs = [bytes(data[a:b]) for a, b in itertools.pairwise(ends)]
    if part.field.dtype == "bin":
        return blobs
    texts: list[str] = []
    for row, blob in enumerate(blobs):
        try:
            texts.append(blob.decode())
        except UnicodeDecodeError as error:
            texts.append("")
            rejected[row] = f"column {part.name!r} is not UTF-8: {error.reason} at byte {error.start}"
    return texts


def _packed(name: str, rows: Any) -> Column:
    try:
        return pack_strings(rows)
    except BusError as error:
        raise ValueError(f"column {name!r} of the answer: {error}") from None  # the operation's fault, not the caller's


def _place(slab: Slab, free: int, array: Array) -> tuple[int, int]:
    """Copy an array to `free`; where it begins, and where the next may."""
    end = free + array.nbytes
    if end > slab.size_bytes:
        raise TooLarge(f"the answer of this batch is larger than the {slab.size_bytes} bytes there are for it")
    slab.array(free, array.dtype, array.shape)[...] = array
    return free, align(end)


def _failed(job: Job, started: float, error: BusError) -> Done:
    return Done(job.id, [], [], _since_us(started), error.code, str(error))


def _since_us(started: float) -> int:
    return int((time.perf_counter() - started) * 1e6)
