"""Tensors that stay with a worker, and expressions over them: put once, used by many agents, by handle."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..bus.client import Client
from ..bus.columns import FIXED, contiguous, wire_dtype
from ..bus.errors import BadParameter, BadValue, EngineLost
from ..bus.subjects import partition
from .changes import again_if_lost, rows_of_one

RUN_BYTES = 256 * 1024  # of a large array in one row of a frame
GET_RUNS = 16  # asked for at once: what the worker then sends must find room on the connection

Array: TypeAlias = "NDArray[Any]"

_TOKEN = re.compile(r"([\w-]+)\.([\w-]+):(\w+):((?:\d+(?:x\d+)*)?)", re.ASCII)


@dataclass(frozen=True)
class Handle:
    """Names a tensor that a worker keeps. Pass it to other agents as it is, or as the text `str(handle)`.

    Whoever has it may read the tensor, but only who put it may replace or free it.

    Attributes:
        key: `<group>.<name>`; tensors of one group lie together and may meet in one expression.
        dtype: as on the wire, `f4`.
        shape: of the whole tensor.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def group(self) -> str:
        """What decides which worker keeps it."""
        return self.key.partition(".")[0]

    @classmethod
    def parse(cls, text: str) -> Handle:
        """The handle that `str` made this text of.

        Raises:
            BadParameter: it is no handle's.
        """
        match = _TOKEN.fullmatch(text)
        if match is None or match[3] not in FIXED:
            raise BadParameter(f"{text[:100]!r} is no handle: write what str(handle) gave, as 'group.name:f4:2x3'")
        return cls(f"{match[1]}.{match[2]}", match[3], tuple(int(size) for size in match[4].split("x") if size))

    def __str__(self) -> str:
        return f"{self.key}:{self.dtype}:{'x'.join(map(str, self.shape))}"


class Tensors:
    """Resident tensors and expressions.

    Args:
        client: asks the workers.
        partitions: as the settings' `bus.partitions`, the same for everybody on the bus.
    """

    def __init__(self, client: Client, partitions: int) -> None:
        self._client = client
        self._partitions = partitions
        self._owner = secrets.token_hex(16)
        self._group = secrets.token_hex(8)

    async def put(
        self,
        array: ArrayLike,
        *,
        ttl_s: float | None = None,
        group: str | None = None,
        replace: Handle | None = None,
        timeout_s: float | None = None,
    ) -> Handle:
        """Leave an array with a worker.

        Args:
            array: of any dtype of the bus and any shape; not to be changed before this returns.
            ttl_s: how long it is kept after its last use, s; by default as the worker's settings say.
            group: name for tensors that shall lie together, letters, digits, `_` and `-`; by default one for all
                tensors put through this connection.
            replace: put it in the place of this tensor, under its key.
            timeout_s: how long to wait, s.

        Raises:
            BadColumn: the dtype cannot be sent.
            Busy, TooLarge: the worker has no room for it.
            NotOwner: `replace` was put through another connection.
        """
        whole = contiguous(np.asarray(array))
        key = replace.key if replace is not None else self._new_key(group)
        handle = Handle(key, wire_dtype(whole), whole.shape)
        named = {"key": key, "owner": self._owner, "version": np.uint64(secrets.randbits(64))}
        parameters: dict[str, Any] = {} if ttl_s is None else {"ttl_s": ttl_s}
        operation = self._operation("put", key)
        run = self._run_elements(whole.itemsize)

        async def put() -> Handle:
            if whole.size <= run:
                row = {**named, "start": np.int64(0), "x": whole}
                answer = await self._client.call(operation, row, parameters, timeout_s=timeout_s, idempotent=True)
                complete = bool(answer["complete"])
            else:
                of_shape = parameters | {"shape": whole.shape}
                complete = await self._put_runs(operation, named, whole.reshape(-1), of_shape, run, timeout_s)
            if not complete:
                raise EngineLost("the worker lost a part of the array while the rest was on its way: put it again")
            return handle

        return await again_if_lost(put)

    async def get(self, handle: Handle, *, timeout_s: float | None = None) -> Array:
        """A tensor's numbers (of bfloat16 as float32: NumPy has none).

        Raises:
            NoTensor: it has expired, was freed, or went with its worker.
            BadValue: it is of another shape or dtype by now, or was replaced while it was read.
        """
        operation = self._operation("get", handle.key)
        size = math.prod(handle.shape)
        run = self._run_elements(FIXED[handle.dtype].itemsize)
        if size <= run:
            row = {"key": handle.key, "start": np.int64(0)}
            parameters = {"t": handle.dtype, "s": handle.shape}
            answer = await self._client.call(operation, row, parameters, timeout_s=timeout_s, idempotent=True)
            found: Array = np.asarray(answer["x"])
            return found
        pieces: list[Array] = []
        versions: set[int] = set()
        for first in range(0, size, run * GET_RUNS):
            last = min(size, first + run * GET_RUNS)
            for start, end, length in _runs(first, last, run):
                starts = np.arange(start, end, length)
                answer = await rows_of_one(
                    self._client,
                    operation,
                    {"key": [handle.key] * len(starts), "start": starts},
                    {"t": handle.dtype, "s": (length,)},
                    timeout_s,
                )
                pieces.append(answer["x"].reshape(-1))
                versions.update(answer["version"].tolist())
        if len(versions) > 1:
            raise BadValue(f"tensor {handle.key!r} was replaced while it was read: get it again")
        return np.concatenate(pieces).reshape(handle.shape)

    async def free(self, handle: Handle, *, timeout_s: float | None = None) -> bool:
        """Drop a tensor that was put through this connection; false if it was gone already.

        Raises:
            NotOwner: another put it.
        """
        row = {"key": handle.key, "owner": self._owner}
        operation = self._operation("free", handle.key)

        async def free() -> bool:
            answer = await self._client.call(operation, row, timeout_s=timeout_s, idempotent=True)
            return bool(answer["freed"])

        return await again_if_lost(free)

    @overload
    async def eval(
        self,
        expression: str,
        *,
        keep: Literal[False] = False,
        ttl_s: None = None,
        timeout_s: float | None = None,
        **operands: ArrayLike | Handle,
    ) -> Array: ...

    @overload
    async def eval(
        self,
        expression: str,
        *,
        keep: Literal[True],
        ttl_s: float | None = None,
        timeout_s: float | None = None,
        **operands: ArrayLike | Handle,
    ) -> Handle: ...

    async def eval(
        self,
        expression: str,
        *,
        keep: bool = False,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
        **operands: ArrayLike | Handle,
    ) -> Array | Handle:
        """The value of an expression, `relu(x @ w + b)`, computed without leaving the device; see docs/residents.md.

        Calls of the same expression and handles share a batch, and an operand that is a handle is read once for all of
        its rows.

        Args:
            expression: names, numbers, + - * / @ ** and functions.
            keep: leave the answer with the worker and return its handle; all operands must be handles.
            ttl_s: of what is kept, as for `put`.
            timeout_s: how long to wait, s.
            operands: by the names that the expression has for them; arrays and handles, all of one dtype. Numbers are
                better written into the expression, where they have no dtype.

        Raises:
            BadParameter: the expression cannot be read, an operand does not suit it, or handles lie apart.
            BadColumn: an operand is not in the expression, or of a dtype that cannot be computed with.
            NoTensor: a handle's tensor is not there any more.
        """
        handles = {name: value for name, value in operands.items() if isinstance(value, Handle)}
        row = {name: value for name, value in operands.items() if not isinstance(value, Handle)}
        parameters: dict[str, Any] = {"expression": expression}
        if handles:
            parameters["handles"] = {
                name: {"key": handle.key, "t": handle.dtype, "s": handle.shape} for name, handle in handles.items()
            }
        keys = [handle.key for handle in handles.values()]
        if keep:
            keys.append(self._new_key(keys[0].partition(".")[0] if keys else None))
            parameters["keep"] = {
                "key": keys[-1],
                "owner": self._owner,
                "version": secrets.randbits(64),
                "ttl_s": ttl_s,
            }
        operation = self._operation("eval", self._together(keys)) if keys else "matrix.eval"
        answer = await self._client.call(operation, row, parameters, timeout_s=timeout_s, idempotent=True)
        if keep:
            return Handle(keys[-1], str(answer["t"]), tuple(answer["s"].tolist()))
        found: Array = np.asarray(answer["y"])
        return found

    def _together(self, keys: Sequence[str]) -> str:
        """One of the keys, all of which must be of one partition.

        Raises:
            BadParameter: they are not.
        """
        groups = dict.fromkeys(key.partition(".")[0] for key in keys)
        if len({partition(group, self._partitions) for group in groups}) > 1:
            raise BadParameter(f"tensors of the groups {', '.join(groups)} lie apart: put them in one group")
        return keys[0]

    async def _put_runs(
        self,
        operation: str,
        named: dict[str, Any],
        flat: Array,
        parameters: dict[str, Any],
        run: int,
        timeout_s: float | None,
    ) -> bool:
        """Put a large array as rows of `run` elements, and a last row of what is left."""
        calls = []
        for start, end, length in _runs(0, flat.size, run):
            starts = np.arange(start, end, length)
            columns = {
                "key": [named["key"]] * len(starts),
                "owner": [named["owner"]] * len(starts),
                "version": np.full(len(starts), named["version"]),
                "start": starts,
                "x": flat[start:end].reshape(-1, length),
            }
            calls.append(rows_of_one(self._client, operation, columns, parameters, timeout_s))
        answers = await asyncio.gather(*calls)
        return any(bool(answer["complete"].any()) for answer in answers)

    def _new_key(self, group: str | None) -> str:
        group = self._group if group is None else group
        if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", group) is None:
            raise BadParameter(f"group {group[:70]!r}: use 1 to 64 letters, digits, '_' and '-'")
        return f"{group}.{secrets.token_hex(12)}"

    def _operation(self, name: str, key: str) -> str:
        return f"matrix.{name}.{partition(key.partition('.')[0], self._partitions)}"

    def _run_elements(self, itemsize: int) -> int:
        return max(1, min(RUN_BYTES, self._client.largest_bytes // 2) // itemsize)


def _runs(first: int, last: int, run: int) -> list[tuple[int, int, int]]:
    """Elements `first` to `last` as runs of one length and a shorter last one: (start, end, length of each)."""
    even = first + (last - first) // run * run
    return [(first, even, run)] * (even > first) + [(even, last, last - even)] * (last > even)
