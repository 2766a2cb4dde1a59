"""Residents: tensors that stay on the device between batches, a cache over their origins.

Eviction drops a copy on the device and nothing else: the next use loads it again. On the CPU the copy is the origin's
file, mapped, so it costs no memory of its own.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import time
from typing import TYPE_CHECKING

import msgspec

from ..bus.columns import Array, Field
from ..bus.errors import BadParameter, Busy, TooLarge
from .device import Device
from .directory import directory_of
from .origin import Origin, Seen, mapped, seen
from .origins import Origins

if TYPE_CHECKING:
    from torch import Tensor


class ResidentsSpec(msgspec.Struct, frozen=True):
    """Where the tensors of a worker are kept, and how many.

    Attributes:
        directory: folder of their files, which outlives the engine; empty for one that goes with the process.
        device_bytes: most bytes of copies on a device; 0 for half of a GPU's memory, or of the host's on the CPU.
        host_bytes: most bytes of files; 0 for half of what is free in the directory.
        ttl_s: how long a tensor is kept after its last use if its owner does not say, s.
    """

    directory: str = ""
    device_bytes: int = 0
    host_bytes: int = 0
    ttl_s: float = 3600.0


class Handle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A resident tensor as a request names it: its key, dtype and shape."""

    key: str
    t: str
    s: tuple[int, ...]

    @property
    def field(self) -> Field:
        """Dtype and shape."""
        return Field(self.t, self.s)


@dataclass(eq=False)
class Copy:
    """A tensor on the device, or about to be.

    Attributes:
        origin: its origin.
        seen: the file that was loaded.
        pins: batches that use it.
        listed: it is what its key leads to.
        tensor: none until it is loaded.
        loading: held while it is.
    """

    origin: Origin
    seen: Seen
    pins: int = 0
    listed: bool = True
    tensor: Tensor | None = None
    loading: threading.Lock = field(default_factory=threading.Lock)


class Residents:
    """The resident tensors of one engine; several threads and streams may use it at once.

    Args:
        spec: where and how many.
        clock: wall time, s.
    """

    def __init__(self, spec: ResidentsSpec, clock: Callable[[], float] = time) -> None:
        self.spec = spec
        self.budget_bytes = spec.device_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._copies: OrderedDict[str, Copy] = OrderedDict()
        self._bytes = 0
        self._hits = self._loads = self._evictions = 0
        self._device: Device | None = None

    def open(self, device: Device) -> None:
        """Make ready on the engine's device. Idempotent."""
        if self._device is not None:
            return
        self._origins = Origins(directory_of(self, self.spec.directory), self.spec.host_bytes, self._clock)
        self._origins.tidy()
        self.budget_bytes = self.spec.device_bytes or _memory_bytes(device) // 2
        self._device = device

    @property
    def origins(self) -> Origins:
        """What is kept on the host; expired copies go with their origins."""
        keys = self._origins.tidy()
        if keys is not None:
            with self._lock:
                for key in [key for key in self._copies if key not in keys]:
                    self._drop(key)
        return self._origins

    @contextmanager
    def use(self, handles: Mapping[str, Handle]) -> Iterator[dict[str, Tensor]]:
        """Tensors on the device, for as long as the caller enqueues work on them.

        Raises:
            BadParameter: a handle's dtype or shape is not the tensor's.
            NoTensor: one is not here any more.
            TooLarge: together they are larger than the budget.
            Busy: there is no room while other batches run.
        """
        total = sum(handle.field.row_bytes for handle in {h.key: h for h in handles.values()}.values())
        if total > self.budget_bytes:
            raise TooLarge(
                f"the tensors take {total} bytes, the device keeps {self.budget_bytes}: use fewer or smaller ones at "
                "once, or raise residents.device_bytes"
            )
        pinned: list[Copy] = []
        try:
            found = {}
            for name, handle in handles.items():
                copy = self._there(handle)
                if copy is not None:
                    pinned.append(copy)
                    found[name] = self._shared(copy.tensor)
                    continue
                with self.checked(handle) as (origin, file):
                    copy = self._pin(handle.key, origin, file)
                    pinned.append(copy)
                    found[name] = self._loaded(handle.key, copy, file)
            yield found
        finally:
            with self._lock:
                for copy in pinned:
                    self._unpin(copy)

    @contextmanager
    def mapped(self, handle: Handle) -> Iterator[Array]:
        """A tensor's origin as memory of the host.

        Raises:
            BadParameter, NoTensor: as `use`.
        """
        with self.checked(handle) as (origin, file):
            yield _mapped(origin, file)

    @contextmanager
    def checked(self, handle: Handle) -> Iterator[tuple[Origin, int]]:
        """A tensor's origin and its file's descriptor, if it is of the handle's dtype and shape.

        Raises:
            BadParameter, NoTensor: as `use`.
        """
        with self.origins.opened(handle.key) as (origin, file):
            if origin.field != handle.field:
                raise BadParameter(
                    f"handle {handle.key!r} says {handle.field}, the tensor is {origin.field}: ask its owner for a "
                    "handle of today"
                )
            yield origin, file

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Keep `size` bytes of the device's budget free of tensors for the caller.

        Raises:
            TooLarge: the budget is smaller.
            Busy: tensors of batches that run now fill it.
        """
        with self._lock:
            self._make_room(size)
            self._bytes += size
        try:
            yield
        finally:
            with self._lock:
                self._bytes -= size

    def keep(self, key: str, origin: Origin, tensor: Tensor) -> None:
        """Make a result of the device a resident.

        Raises:
            BadValue, NotOwner, TooLarge, Busy: as `Origins.write`.
        """
        assert self._device is not None, "opened before the first batch"
        draft = self.origins.draft(key, origin)
        try:
            own = tensor.clone() if tensor.is_cuda else None
            self._device.fetch(tensor, draft.array.reshape(origin.shape))
            self._device.synchronize()
        except BaseException:
            self._origins.discard(draft)
            raise
        self._origins.publish(draft)
        if own is not None:
            with self._origins.opened(key) as (there, file):
                if there.serial == origin.serial:
                    self._adopt(key, Copy(origin, seen(file), tensor=own))

    def free(self, key: str, owner: str) -> bool:
        """Drop a tensor everywhere; whether it was there.

        Raises:
            BadValue, NotOwner: as `Origins.free`.
        """
        freed = self.origins.free(key, owner)
        with self._lock:
            self._drop(key)
        return freed

    def relieve(self) -> None:
        """Drop the copies on the device that no batch uses."""
        with self._lock:
            for key in [key for key, copy in self._copies.items() if not copy.pins]:
                self._drop(key)
                self._evictions += 1

    def statistics(self) -> dict[str, int]:
        """Figures for whoever watches: bytes and counts."""
        with self._lock:
            return {
                "device_bytes": self._bytes,
                "device_budget_bytes": self.budget_bytes,
                "device_count": len(self._copies),
                "host_bytes": self._origins.used_bytes,
                "host_budget_bytes": self._origins.budget_bytes,
                "count": self._origins.count,
                "hits": self._hits,
                "loads": self._loads,
                "evictions": self._evictions,
            }

    def _there(self, handle: Handle) -> Copy | None:
        """A copy that is loaded, with one pin more, if its origin is as it was."""
        with self._lock:
            copy = self._copies.get(handle.key)
        if copy is None or copy.tensor is None or copy.origin.field != handle.field:
            return None
        if not self.origins.unchanged(handle.key, copy.seen, copy.origin.ttl_s):
            return None
        with self._lock:
            if not copy.listed:
                return None
            self._hits += 1
            self._copies.move_to_end(handle.key)
            copy.pins += 1
            return copy

    def _pin(self, key: str, origin: Origin, file: int) -> Copy:
        """The copy of an origin, with one pin more; it may have to be loaded yet."""
        with self._lock:
            copy = self._copies.get(key)
            if copy is not None and copy.origin.serial != origin.serial:  # replaced since
                self._drop(key)
                copy = None
            if copy is None:
                self._make_room(origin.nbytes)
                copy = self._copies[key] = Copy(origin, seen(file))
                self._bytes += origin.nbytes
                self._loads += 1
            else:
                copy.seen = seen(file)  # used again, it lives longer
                self._hits += 1
            self._copies.move_to_end(key)
            copy.pins += 1
            return copy

    def _loaded(self, key: str, copy: Copy, file: int) -> Tensor:
        device = self._device
        assert device is not None, "opened before the first batch"
        with copy.loading:
            if copy.tensor is None:
                try:
                    copy.tensor = device.tensor(_mapped(copy.origin, file), copy.origin.dtype)
                    device.synchronize()  # other threads' streams will use it, and the mapping ends here
                except BaseException:
                    with self._lock:
                        if self._copies.get(key) is copy:
                            self._drop(key)
                    raise
        return self._shared(copy.tensor)

    def _shared(self, tensor: Tensor | None) -> Tensor:
        """A copy for use on this thread's stream."""
        device = self._device
        assert device is not None, "opened before the first batch"
        assert tensor is not None, "loaded before"
        if device.is_cuda:
            import torch

            # Its memory is not given to others before what this stream enqueues has run.
            tensor.record_stream(torch.cuda.current_stream(device.place))
        return tensor

    def _adopt(self, key: str, copy: Copy) -> None:
        """Keep a copy that is on the device already, if there is room."""
        with self._lock, suppress(Busy, TooLarge):
            self._drop(key)
            self._make_room(copy.origin.nbytes)
            self._copies[key] = copy
            self._bytes += copy.origin.nbytes

    def _make_room(self, size: int) -> None:
        """Evict what was used longest ago until `size` bytes more fit."""
        if size > self.budget_bytes:
            raise TooLarge(f"the tensor takes {size} bytes, the device keeps {self.budget_bytes}: use a smaller one")
        idle = [key for key, copy in self._copies.items() if not copy.pins]
        for key in idle:
            if self._bytes + size <= self.budget_bytes:
                break
            self._drop(key)
            self._evictions += 1
        if self._bytes + size > self.budget_bytes:
            raise Busy("tensors of batches that run now fill the device: ask again", retry_after_s=0.05)

    def _drop(self, key: str) -> None:
        """Let go of a copy; the bytes of one in use count until it is not."""
        copy = self._copies.pop(key, None)
        if copy is not None:
            copy.listed = False
            if not copy.pins:
                self._bytes -= copy.origin.nbytes

    def _unpin(self, copy: Copy) -> None:
        copy.pins -= 1
        if not copy.pins and not copy.listed:
            self._bytes -= copy.origin.nbytes


def _mapped(origin: Origin, file: int) -> Array:
    # By its descriptor: the name may be another file's by now.
    return mapped(f"/proc/self/fd/{file}", origin.field)


def _memory_bytes(device: Device) -> int:
    if not device.is_cuda:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import torch

    return int(torch.cuda.mem_get_info(device.place)[1])
