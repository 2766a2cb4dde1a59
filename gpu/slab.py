"""Slabs: shared memory in which the front lays a batch's columns out and the engine lays its results.

A slab is an anonymous file (memfd) mapped by both processes. The front copies a batch's rows from their frames straight
into it, which is the only host copy on the way in; it is reused batch after batch, never allocated for one.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Any

import numpy as np

from ..bus.columns import Array

ALIGN = 64  # bytes: a cache line, and what vector loads and later device copies like
TIME = struct.Struct("d")  # monotonic time, s: the processes of a host share its clock


class Slab:
    """One piece of shared memory.

    Attributes:
        fd: its file descriptor, for an engine to be given.
        size_bytes: its size; pages never written cost nothing.
        view: its bytes, writable.
        address: where it lies in this process.
    """

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        self._map = mmap.mmap(fd, size_bytes)
        self.view = memoryview(self._map)
        self.address = np.frombuffer(self._map, np.uint8).ctypes.data

    @classmethod
    def create(cls, size_bytes: int) -> Slab:
        """A new slab of zeros."""
        fd = os.memfd_create("aikoryu-slab")
        os.ftruncate(fd, size_bytes)
        return cls(fd, size_bytes)

    def array(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """An array over the slab's memory, writable, in C order."""
        return np.ndarray(shape, dtype, self._map, offset)

    def stamp(self, offset: int, time_s: float) -> None:
        """Write a time, in one store."""
        TIME.pack_into(self.view, offset, time_s)

    def stamped(self, offset: int) -> float:
        """The time written there."""
        time_s: float = TIME.unpack_from(self.view, offset)[0]
        return time_s

    def offset_of(self, address: int, size: int) -> int | None:
        """Where memory of this process lies in the slab, if it does."""
        offset = address - self.address
        return offset if offset >= 0 and offset + size <= self.size_bytes else None

    def close(self) -> None:
        """Give the memory back; arrays over it must not be used any more. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def align(offset: int) -> int:
    """The next offset at which an array may begin."""
    return (offset + ALIGN - 1) & -ALIGN
