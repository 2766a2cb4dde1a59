"""A CUDA device: registered slabs, streams, one pool of memory."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bus.columns import Array
from .device import Device, DeviceLost, Mark, OutOfMemory
from .slab import Slab

if TYPE_CHECKING:
    import torch


class DeviceRefused(RuntimeError):
    """The device cannot run here. The operator must act; the message says how."""


class CudaDevice(Device):
    """One GPU. See `device.Device`.

    Copies go through registered slabs, so they run beside the CPU and beside other streams' kernels. CuPy, where it is
    installed, allocates from torch's caching allocator: there is one pool.
    """

    def __init__(self, name: str, threads: int) -> None:
        super().__init__(name, threads)
        self._own = _Streams(self)

    @property
    def is_cuda(self) -> bool:
        """True."""
        return True

    def open(self) -> None:
        """Claim the GPU in this process.

        Raises:
            DeviceRefused: there is no such GPU, or this torch or the driver cannot run on it.
        """
        import torch

        super().open()
        check(torch, self.place)
        torch.cuda.set_device(self.place)
        # Sums of half precision products stay in float32, as the stated tolerances have it.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        _share_pool_with_cupy()

    def stream(self, number: int = 0) -> AbstractContextManager[object]:
        """One of the thread's streams, made when it is first asked for."""
        return self._own.numbered(number)

    def mark(self) -> Mark:
        """An event on the stream entered last; the next mark on the same stream takes its place."""
        return self._own.entered[-1].mark()

    def register(self, slab: Slab) -> None:
        """Page-lock the slab, which takes about 1 ms for each 1 MB the first time.

        Raises:
            OSError: the system gives no page-locked memory of this size.
        """
        import torch

        error = torch.cuda.cudart().cudaHostRegister(slab.address, slab.size_bytes, 0)
        if int(error) != 0:
            with suppress(torch.AcceleratorError):  # takes the error, which the driver would report to the next call
                torch.zeros(1, device=self.place)
            raise OSError(f"{slab.size_bytes} bytes of host memory cannot be page-locked: {error}")

    def unregister(self, slab: Slab) -> None:
        """Let the slab's pages go."""
        import torch

        torch.cuda.cudart().cudaHostUnregister(slab.address)

    def tensor(self, pieces: Array | Sequence[Array], dtype: str) -> torch.Tensor:
        """Host memory as one tensor on the GPU; the copies are enqueued."""
        import torch

        if isinstance(pieces, np.ndarray):
            pieces = (pieces,)
        sources = [torch.from_numpy(piece) for piece in pieces]
        if len(sources) == 1:
            tensor = sources[0].to(self.place, non_blocking=True)
        else:
            rows = sum(len(piece) for piece in pieces)
            tensor = torch.empty((rows, *sources[0].shape[1:]), dtype=sources[0].dtype, device=self.place)
            start = 0
            for source in sources:
                tensor[start : start + len(source)].copy_(source, non_blocking=True)
                start += len(source)
        return tensor.view(torch.bfloat16) if dtype == "bf16" else tensor

    def offset_in(self, slab: Slab, value: Any) -> int | None:
        """Where a host array lies in the slab already; a tensor never does."""
        return super().offset_in(slab, value) if isinstance(value, np.ndarray) else None

    def synchronize(self) -> None:
        """Wait for the current stream, without holding the interpreter."""
        import torch

        try:
            torch.cuda.current_stream(self.place).synchronize()
        except RuntimeError as error:
            raise self.explain(error) from error

    def explain(self, error: Exception) -> Exception:
        """Tell a full device and a broken one from errors of the operation."""
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            with suppress(RuntimeError):
                torch.cuda.empty_cache()
            return OutOfMemory(f"{self.name} has no room for the batch")
        if isinstance(error, torch.AcceleratorError):
            return DeviceLost(str(error).partition("\n")[0])
        return error

    def figures(self) -> dict[str, float]:
        """Memory of the pool: in use by tensors, and held from the driver."""
        import torch

        return {
            "device_allocated_bytes": float(torch.cuda.memory_allocated(self.place)),
            "device_reserved_bytes": float(torch.cuda.memory_reserved(self.place)),
        }


class _Stream:
    """A stream, current between `with` and its end, and the mark that a batch on it leaves."""

    def __init__(self, device: CudaDevice, own: _Streams) -> None:
        import torch

        torch.cuda.set_device(device.place)  # for this thread
        self.stream = torch.cuda.Stream(device.place)
        self._make_current = torch.cuda.set_stream  # a third of what torch.cuda.stream costs
        self._default = torch.cuda.default_stream(device.place)
        self._event = torch.cuda.Event()
        self._device = device
        cupy = sys.modules.get("cupy")  # there since `open` where it is installed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what takes its place is not in CuPy 13
            self._cupy: Any = cupy.cuda.ExternalStream(self.stream.cuda_stream) if cupy is not None else None
        # Torch's default stream, too: kernels of both must run in one order also where no stream was entered.
        self._cupy_default: Any = cupy.cuda.Stream.null if cupy is not None else None
        self._entered = own.entered

    def __enter__(self) -> None:
        self._entered.append(self)
        self._make_current(self.stream)
        if self._cupy is not None:
            self._cupy.use()

    def __exit__(self, *_: object) -> None:
        self._entered.pop()
        outer = self._entered[-1] if self._entered else None
        self._make_current(self._default if outer is None else outer.stream)
        if self._cupy is not None:
            (self._cupy_default if outer is None else outer._cupy).use()

    def mark(self) -> _Stream:
        try:
            self._event.record(self.stream)
        except RuntimeError as error:
            raise self._device.explain(error) from error
        return self

    def query(self) -> bool:
        try:
            return bool(self._event.query())
        except RuntimeError as error:
            raise self._device.explain(error) from error

    def wait(self) -> None:
        try:
            self._event.synchronize()
        except RuntimeError as error:
            raise self._device.explain(error) from error


class _Streams(threading.local):
    """A thread's streams.

    Attributes:
        entered: those entered and not left, the current one last.
    """

    def __init__(self, device: CudaDevice) -> None:
        self.entered: list[_Stream] = []
        self._device = device
        self._numbered: dict[int, _Stream] = {}

    def numbered(self, number: int) -> _Stream:
        stream = self._numbered.get(number)
        if stream is None:
            stream = self._numbered[number] = _Stream(self._device, self)
        return stream


def check(torch: Any, place: torch.device) -> None:
    """Refuse a GPU that this process could not use.

    Raises:
        DeviceRefused: with what the operator can do.
    """
    if torch.version.cuda is None:
        raise DeviceRefused(f"this torch {torch.__version__} is built without CUDA: install a CUDA build of torch")
    if not torch.cuda.is_available():
        raise DeviceRefused(
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU it can use: "
            "see `nvidia-smi`, the driver's version, and CUDA_VISIBLE_DEVICES"
        )
    if place.index is not None and place.index >= torch.cuda.device_count():
        raise DeviceRefused(
            f"there is no {place}: {torch.cuda.device_count()} GPUs are visible; "
            "set worker.device or CUDA_VISIBLE_DEVICES"
        )
    capability = torch.cuda.get_device_capability(place)
    built = [tuple(divmod(int(name.split("_")[1].rstrip("af")), 10)) for name in torch.cuda.get_arch_list()]
    if built and capability < min(built):
        raise DeviceRefused(
            f"{torch.cuda.get_device_name(place)} has compute capability {capability[0]}.{capability[1]}, this torch "
            f"is built for {min(built)[0]}.{min(built)[1]} and newer: use a torch built for it, or worker.device=cpu"
        )


def _share_pool_with_cupy() -> None:
    """Let CuPy allocate from torch's caching allocator."""
    try:
        import cupy
    except ImportError:
        return
    import torch

    def allocate(size: int, device: int) -> int:
        return int(torch.cuda.caching_allocator_alloc(size, device))

    def free(pointer: int, device: int) -> None:
        torch.cuda.caching_allocator_delete(pointer)

    cupy.cuda.set_allocator(cupy.cuda.PythonFunctionAllocator(allocate, free).malloc)
