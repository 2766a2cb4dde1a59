"""Packets on a GPU: a thread a packet, through the kernels of `source.py`, with the answers of netio bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ...bus.columns import FIXED
from ...netio.classify import Classifier
from ...netio.maglev import MaglevTable
from ..batch import Batch
from ..compiled import compiled
from ..device import Device
from .columns import DTYPES, FIELDS
from .flat import Flat
from .frames import Frames
from .source import kernel_names, source

if TYPE_CHECKING:
    from torch import Tensor

THREADS = 128
"""Of a block."""

Launch: TypeAlias = Callable[[str, int, Sequence[Any]], None]
"""Enqueues a kernel on the current stream: its name, threads, and arguments as NumPy scalars."""

_HEADERS = ("version", "src_high", "src_low", "dst_high", "dst_low", "sport", "dport", "protocol", "tcp_flags")


@dataclass(frozen=True, eq=False)
class DeviceFrames:
    """Raw packets on the device; see `Frames`.

    Attributes:
        blob: (m,) uint8, their bytes.
        offsets: (n + 1,) uint32, where each begins and ends.
        link: (n,) uint16, or None.
        wire: (n,) uint32, or None.
        common_link: a link type.
    """

    blob: Tensor
    offsets: Tensor
    link: Tensor | None
    wire: Tensor | None
    common_link: int

    @classmethod
    def of(cls, frames: Frames, device: Device) -> DeviceFrames:
        """The packets of a batch, copied to the device."""
        return cls(
            device.tensor(frames.blobs.data, "u1"),
            device.tensor(frames.blobs.offsets, "u4"),
            None if frames.link is None else device.tensor(frames.link, "u2"),
            None if frames.wire is None else device.tensor(frames.wire, "u4"),
            frames.common_link,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, eq=False)
class DeviceKeys:
    """Columns of keys on the device; None stands for what all keys have.

    Attributes:
        version: (n,) uint8, or the version of all.
        address: source high and low, destination high and low: (n,) uint64, or the columns of (n, 2); of IPv4 alone
            uint32, and the upper halves are anything.
        port: source and destination, (n,) uint16.
        protocol: (n,) uint8.
        vlan: (n,) uint16.
        tcp_flags: (n,) uint8 or uint16.
    """

    version: Tensor | int
    address: tuple[Tensor, Tensor, Tensor, Tensor]
    port: tuple[Tensor, Tensor]
    protocol: Tensor
    vlan: Tensor | None
    tcp_flags: Tensor | None

    @classmethod
    def of(cls, batch: Batch) -> DeviceKeys:
        """The keys of a batch whose columns are those of `key_columns`."""
        there = dict(batch.schema)
        source, destination = batch.tensor("source"), batch.tensor("destination")
        if source.ndim == 1:
            version: Tensor | int = 4
            address = (source, source, destination, destination)
        else:
            version = batch.tensor("version") if "version" in there else 6
            address = (source[:, 0], source[:, 1], destination[:, 0], destination[:, 1])
        return cls(
            version,
            address,
            (batch.tensor("source_port"), batch.tensor("destination_port")),
            batch.tensor("protocol"),
            batch.tensor("vlan") if "vlan" in there else None,
            batch.tensor("tcp_flags") if "tcp_flags" in there else None,
        )

    def __len__(self) -> int:
        return len(self.protocol)

    def arguments(self) -> tuple[Any, ...]:
        """`KEY_ARGUMENTS` of `classify.cu`."""
        low, flags = self.address[1], self.tcp_flags
        given = self.version if isinstance(self.version, int) else 0
        columns = (
            None if isinstance(self.version, int) else self.version,
            *self.address,
            *self.port,
            self.protocol,
            self.vlan,
            flags,
        )
        flag_bytes = 0 if flags is None else flags.itemsize
        numbers = (given, low.itemsize == 4, low.stride(0) if len(low) else 1, flag_bytes)
        return (*map(_pointer, columns), *map(np.uint32, numbers), np.uint64(len(self)))


@dataclass(frozen=True, eq=False)
class DeviceClassifier:
    """A rule set on the device. Any number of batches may use it at once.

    Attributes:
        whole: its memory.
        four, six: addresses of the structures of each IP version; 0 for none.
    """

    whole: Tensor
    four: int
    six: int


class PacketKernels:
    """What the kernels do to a batch.

    Args:
        device: where they run.
        launch: how.
    """

    def __init__(self, device: Device, launch: Launch) -> None:
        self._device = device
        self._launch = launch
        self._places = lru_cache(maxsize=256)(self._new_places)

    @classmethod
    def on(cls, device: Device) -> PacketKernels | None:
        """The kernels of a GPU, compiled; None where there is no GPU or no CuPy: netio does the same on the host."""
        launch = _compiled() if device.is_cuda else None
        return None if launch is None else cls(device, launch)

    @property
    def device(self) -> Device:
        """Where they run."""
        return self._device

    def launch(self, name: str, threads: int, *arguments: Tensor | int | None) -> None:
        """Enqueues a kernel all of whose arguments are addresses and 64-bit numbers.

        Args:
            name: of the kernel.
            threads: how many; none is launched for 0.
            arguments: tensors on the device, contiguous and held until the stream has come here; None is null.
        """
        words = [np.uint64(each) if isinstance(each, int) else _pointer(each) for each in arguments]
        self._launch(name, threads, words)

    def dissect(self, frames: DeviceFrames, names: Sequence[str]) -> dict[str, Tensor]:
        """Columns of packets: (n,) each."""
        import torch

        rows = len(frames)
        capacity = -(-rows // 8) * 8
        places = self._places(tuple(names))
        self._share(places)
        row_bytes = sum(DTYPES[name].itemsize for name in names)
        out = torch.empty(row_bytes * capacity, dtype=torch.uint8, device=self._device.place)
        self._launch(
            "dissect",
            rows,
            (
                *(_pointer(frames.blob), np.uint64(len(frames.blob)), _pointer(frames.offsets), _pointer(frames.link)),
                *(np.uint32(frames.common_link), _pointer(frames.wire), np.uint64(rows)),
                *(_pointer(out), np.uint64(capacity), _pointer(places)),
            ),
        )
        return dict(zip(names, _columns(out, capacity, rows, names), strict=True))

    def keys(self, frames: DeviceFrames, side: str) -> DeviceKeys:
        """The keys of packets, by their `outer` or `inner` headers."""
        names = [f"{side}.{name}" for name in _HEADERS]
        found = self.dissect(frames, [*names, "vlan_outer"])
        version, source_high, source_low, destination_high, destination_low, *rest = (found[name] for name in names)
        source_port, destination_port, protocol, tcp_flags = rest
        address = (source_high, source_low, destination_high, destination_low)
        return DeviceKeys(version, address, (source_port, destination_port), protocol, found["vlan_outer"], tcp_flags)

    def prepared(self, classifier: Classifier) -> DeviceClassifier:
        """A rule set, copied to the device."""
        import torch

        flat = Flat.of(classifier)
        whole = torch.empty(flat.nbytes, dtype=torch.uint8, device=self._device.place)
        address = whole.data_ptr()
        whole.copy_(torch.from_numpy(flat.copied(address)))
        self._device.synchronize()  # other streams will use it
        return DeviceClassifier(whole, *(0 if at is None else address + at for at in (flat.four, flat.six)))

    def classify(self, keys: DeviceKeys, rules: DeviceClassifier) -> Tensor:
        """The first rule that matches each key: (n,) int32, -1 for none."""
        self._share(rules.whole)
        found = self._answer(keys)
        arguments = (*keys.arguments(), np.uint64(rules.four), np.uint64(rules.six), _pointer(found))
        self._launch("classify", len(keys), arguments)
        return found

    def slots(self, table: MaglevTable) -> Tensor:
        """A table of back ends, copied to the device."""
        slots = self._device.tensor(table.slots, "i4")
        self._device.synchronize()
        return slots

    def balance(self, keys: DeviceKeys, slots: Tensor) -> Tensor:
        """The back end of each flow: (n,) int32."""
        self._share(slots)
        found = self._answer(keys)
        arguments = (*keys.arguments(), _pointer(slots), np.uint64(len(slots)), _pointer(found))
        self._launch("balance", len(keys), arguments)
        return found

    def _answer(self, keys: DeviceKeys) -> Tensor:
        import torch

        return torch.empty(len(keys), dtype=torch.int32, device=self._device.place)

    def _new_places(self, names: tuple[str, ...]) -> Tensor:
        """Where each column begins, in bytes a row; -1 for those that are not wanted: (columns,) int32."""
        places = np.full(len(DTYPES), -1, np.int32)
        order = list(DTYPES)
        at = 0
        for name in names:
            places[order.index(name)] = at
            at += DTYPES[name].itemsize
        tensor = self._device.tensor(places, "i4")
        self._device.synchronize()
        return tensor

    def _share(self, tensor: Tensor) -> None:
        """Its memory is not given to others before what this stream enqueues has run."""
        if self._device.is_cuda:
            import torch

            tensor.record_stream(torch.cuda.current_stream(self._device.place))


def _columns(out: Tensor, capacity: int, rows: int, names: Sequence[str]) -> list[Tensor]:
    """The columns that lie in one piece of memory."""
    import torch

    found = []
    at = 0
    for name in names:
        field = FIELDS[name]
        size = FIXED[field.dtype].itemsize
        begin = at * capacity
        found.append(out[begin : begin + rows * size].view(getattr(torch, FIXED[field.dtype].name)))
        at += size
    return found


def _pointer(tensor: Tensor | None) -> np.uint64:
    return np.uint64(0 if tensor is None else tensor.data_ptr())


@lru_cache(maxsize=1)
def _compiled() -> Launch | None:
    """The kernels, compiled for the GPU at hand; None without CuPy, or without the compiler that it loads."""
    functions = compiled(source(), kernel_names(), "packets run on the host")
    if functions is None:
        return None

    def launch(name: str, threads: int, arguments: Sequence[Any]) -> None:
        if threads:
            functions[name]((-(-threads // THREADS),), (THREADS,), tuple(arguments))

    return launch
