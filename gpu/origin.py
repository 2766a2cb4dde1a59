"""An origin: a tensor's file, the array's bytes in C order, then `FOOTER_BYTES` of JSON, an `Origin`.

So it can be mapped as it is. The file's modification time is when it expires.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import NamedTuple

import msgspec
import numpy as np

from ..bus.columns import FIXED, Array, Field
from ..bus.errors import BadParameter, BadValue

FOOTER_BYTES = 1024
MAX_TTL_S = 30 * 86400.0


class Origin(msgspec.Struct, frozen=True):
    """What is known of a tensor besides its numbers.

    Attributes:
        dtype, shape: of the whole array; the wire name.
        version: the putter's number of this content: putting it once more changes nothing.
        owner: digest of the token without which nobody may replace or free it.
        ttl_s: how long it is kept after its last use, s.
        serial: tells this file from every other.
    """

    dtype: str
    shape: tuple[int, ...]
    version: int
    owner: str
    ttl_s: float
    serial: str

    @classmethod
    def make(cls, field: Field, version: int, owner: str, ttl_s: float) -> Origin:
        """The origin of an array about to be put by whoever holds the token `owner`.

        Raises:
            BadParameter: the time to live is none.
            BadValue: the token is empty.
        """
        if not 0 < ttl_s <= MAX_TTL_S:
            raise BadParameter(f"ttl_s is {ttl_s}: use more than 0 and at most {MAX_TTL_S:g} s")
        if not owner:
            raise BadValue("the owner's token is empty: make one of random letters")
        return cls(field.dtype, field.shape, version, digest(owner), ttl_s, secrets.token_hex(8))

    @property
    def field(self) -> Field:
        """Dtype and shape."""
        return Field(self.dtype, self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.field.row_bytes


class Draft:
    """A tensor that its maker fills, invisible until it is published.

    Attributes:
        key, origin: what it will be.
        path: its file.
        array: the file itself, writable, of the tensor's shape.
    """

    def __init__(self, key: str, origin: Origin, path: str) -> None:
        self.key = key
        self.origin = origin
        self.path = path
        self.array: Array = mapped(path, origin.field, shared=True)


class Seen(NamedTuple):
    """What tells a file from any that takes its place."""

    inode: int
    changed_ns: int


class Upload(msgspec.Struct):
    """What stands behind the elements of an array of which not all have come: the runs of elements that have."""

    origin: Origin
    runs: list[tuple[int, int]]

    def add(self, start: int, end: int) -> None:
        """Runs may overlap, repeat, and come in any order."""
        apart = [run for run in self.runs if run[1] < start or run[0] > end]
        met = [run for run in self.runs if run not in apart]
        self.runs = [*apart, (min([start, *(run[0] for run in met)]), max([end, *(run[1] for run in met)]))]


def mapped(path: str, field: Field, *, shared: bool = False) -> Array:
    """The elements at a file's beginning, as memory: of its own if written to, unless `shared`.

    Unlike NumPy's and Python's mappings it keeps no file descriptor, of which a process has few.
    """
    import torch

    if field.row_bytes == 0:
        return np.empty(field.shape, FIXED[field.dtype])
    memory = torch.from_file(path, shared=shared, size=field.row_bytes, dtype=torch.uint8)
    array: Array = memory.numpy().view(FIXED[field.dtype]).reshape(field.shape)
    return array


def seen(file: int) -> Seen:
    """What tells an open file from others."""
    found = os.fstat(file)
    return Seen(found.st_ino, found.st_ctime_ns)


def digest(owner: str) -> str:
    """What is kept of an owner's token."""
    return hashlib.sha256(owner.encode()).hexdigest()[:32]


def read_behind(file: int, size: int) -> Origin:
    """What is known of the tensor in an open file of this size."""
    return _origins.decode(os.pread(file, FOOTER_BYTES, size - FOOTER_BYTES))


def write_behind(file: int, origin: Origin, what: Origin | Upload) -> None:
    """Write what is known of a tensor, or of what has come of it, behind its elements."""
    text = msgspec.json.encode(what).ljust(FOOTER_BYTES)
    os.pwrite(file, text, origin.nbytes)
    os.truncate(file, origin.nbytes + len(text))


_origins = msgspec.json.Decoder(Origin)
