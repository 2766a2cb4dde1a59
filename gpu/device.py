"""Devices: where a batch runs, and how its columns get there and back.

One implementation on torch serves every device; torch is loaded when the first tensor is asked for. `Device` is the
CPU, `cuda.py` has the other kind.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..bus.columns import FIXED, Array, Field
from ..config import CpuSettings

if TYPE_CHECKING:
    import torch

    from .slab import Slab


class DeviceLost(RuntimeError):
    """The device, or this process's context on it, cannot be used any more: the engine must be started again."""


class Mark(Protocol):
    """A place in a stream; both raise `DeviceLost`."""

    def query(self) -> bool:
        """Whether the device has come there."""

    def wait(self) -> None:
        """Return when it has."""


class OutOfMemory(RuntimeError):
    """The device has no room for what a batch needs."""


_NAMES = {name: {dtype.name} for name, dtype in FIXED.items()} | {"bf16": {"uint16", "bfloat16"}}


class Device:
    """One device of an engine: the CPU, and what every device can do.

    Attributes:
        name: `cpu` or `cuda:0`, as it stands in replies and metrics; also what torch calls it.
        threads: threads one operation may compute with on the host.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.threads = threads

    @property
    def is_cuda(self) -> bool:
        """Whether tensors live on a GPU."""
        return False

    @cached_property
    def place(self) -> torch.device:
        """The device as torch knows it."""
        import torch

        return torch.device(self.name)

    def open(self) -> None:
        """Claim the device in the process that will run on it. Without torch only NumPy operations can run."""
        try:
            import torch
        except ImportError:
            return
        torch.set_num_threads(self.threads)
        torch.set_grad_enabled(False)

    def stream(self, number: int = 0) -> AbstractContextManager[object]:
        """One of the thread's streams: what is enqueued on it runs in order, beside what is on others."""
        return nullcontext()

    def mark(self) -> Mark | None:
        """Where the current stream is now, to see or wait until the device has come there; None: it has already.

        The next mark on the same stream takes its place.
        """
        return None

    def register(self, slab: Slab) -> None:
        """Let copies to and from the slab run without the CPU."""

    def unregister(self, slab: Slab) -> None:
        """The slab is about to be given back."""

    def tensor(self, pieces: Array | Sequence[Array], dtype: str) -> torch.Tensor:
        """Host memory as one tensor on the device.

        Args:
            pieces: one array or several, of any of the bus's dtypes and C-contiguous; several are joined along the
                first axis. They must not change before the device has come here.
            dtype: the wire name; tells bf16 from u2.

        Returns:
            On `cpu` the memory of a single array itself, otherwise a copy that may still be on its way.
        """
        import torch

        if isinstance(pieces, np.ndarray):
            tensor = torch.from_numpy(pieces)
        else:
            tensors = [torch.from_numpy(piece) for piece in pieces]
            tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return tensor.view(torch.bfloat16) if dtype == "bf16" else tensor

    def fetch(self, value: Any, into: Array) -> None:
        """Start to copy a result to the host; it has arrived after `synchronize`.

        Args:
            value: a tensor on the device, or a NumPy array.
            into: where to, of the same shape and dtype (of bf16 the bits), C-contiguous.
        """
        if isinstance(value, np.ndarray):
            into[...] = value
            return
        import torch

        torch.from_numpy(into).copy_(bits(value), non_blocking=True)

    def to_host(self, value: Any) -> Any:
        """A result in memory of the host's own, there after `synchronize`; what is no tensor as it is."""
        if isinstance(value, np.ndarray | list):
            return value
        found = bits(value)
        array: Array = np.empty(tuple(found.shape), str(found.dtype).removeprefix("torch."))
        self.fetch(value, array)
        return array

    def offset_in(self, slab: Slab, value: Any) -> int | None:
        """Where a result lies in the slab already, if it does: an operation may answer with what it was given."""
        if isinstance(value, np.ndarray):
            return slab.offset_of(value.ctypes.data, value.nbytes) if value.flags.c_contiguous else None
        if value.is_conj() or value.is_neg() or not value.is_contiguous():
            return None
        return slab.offset_of(value.data_ptr(), value.nbytes)

    def synchronize(self) -> None:
        """Wait until what is enqueued on the current stream is done."""

    def explain(self, error: Exception) -> Exception:
        """An error of the device as `DeviceLost` or `OutOfMemory`; any other as it is."""
        return error

    def figures(self) -> dict[str, float]:
        """What it knows of its memory, bytes by name of the metric."""
        return {}


def threads_of(cpu: CpuSettings) -> int:
    """Threads that an engine computes with on the host: fewer than the cores, so a front always finds one."""
    return cpu.threads or max(1, len(os.sched_getaffinity(0)) - 1)


def open_device(name: str, threads: int) -> Device:
    """The device of this name; `open` claims it."""
    if name == "cpu":
        return Device(name, threads)
    from .cuda import CudaDevice

    return CudaDevice(name, threads)


def suits(value: Any, field: Field) -> bool:
    """Whether a result, an array or tensor whose first axis is the row, is of the type."""
    name = value.dtype.name if isinstance(value, np.ndarray) else str(value.dtype).removeprefix("torch.")
    # Of bf16 NumPy has only the bits.
    return name in _NAMES[field.dtype] and tuple(value.shape[1:]) == field.shape


def tensor_of(column: Array, place: torch.device) -> torch.Tensor:
    """An array's numbers on a device; those of u8 as the int64 of the same bits. A copy: the array may be read-only."""
    import torch

    signed = column.view(np.int64) if column.dtype == np.uint64 else column
    return torch.from_numpy(signed.copy()).to(place)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in a dtype that NumPy has: those of bf16 as u2."""
    import torch

    return tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor.resolve_conj().resolve_neg()
