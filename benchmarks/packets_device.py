"""Packets on a GPU without the bus: keys and packets that stay there, and packets that come from host memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from aikoryu.gpu.device import Device
from aikoryu.gpu.packets.columns import DTYPES
from aikoryu.gpu.packets.kernels import DeviceClassifier, DeviceFrames, DeviceKeys, PacketKernels
from aikoryu.netio.classify import Classifier
from aikoryu.netio.dissect import dissect
from aikoryu.netio.keys import Keys
from aikoryu.netio.packet_index import Array
from benchmarks import record
from benchmarks.ours import NAME
from benchmarks.packets_captures import Tiles
from benchmarks.packets_goals import COPIES
from benchmarks.packets_rules import KeyColumns
from benchmarks.stopwatch import seconds_each, synchronize

if TYPE_CHECKING:
    from torch import Tensor

DISSECTED, ALL_COLUMNS = f"{NAME}, dissect for rules", f"{NAME}, dissect into all columns"
CHECKED = 200_000
CHUNK_BYTES = 64 << 20
STREAMS = 3

Samples = dict[str, list[dict[str, Any]]]


class Resident:
    """Work on a device, timed.

    Args:
        kernels: of the device.
        least_s: length of one measurement, s.
    """

    def __init__(self, kernels: PacketKernels, least_s: float) -> None:
        self.kernels = kernels
        self._least_s = least_s

    @property
    def device(self) -> Device:
        """Where it is done."""
        return self.kernels.device

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """A stream of the device's own, on which torch and the kernels are in step; before it everything has run.

        Not within another: what is enqueued after the inner one would go to two streams.
        """
        synchronize(self.device.name)
        with self.device.stream():
            yield
            synchronize(self.device.name)

    def look_up(self, classifier: Classifier, keys: KeyColumns, rounds: int) -> Samples:
        """The first rules of keys that lie on the device, all in one batch."""
        rules, there = self.kernels.prepared(classifier), device_keys(keys)
        wrong = self._wrong_rules(classifier, rules, keys)
        rates = [len(keys) / self._seconds(lambda: self.kernels.classify(there, rules)) for _ in range(rounds)]
        return {NAME: [record.sample(wrong, rows_per_s=round(rate)) for rate in rates]}

    def classify_packets(self, classifier: Classifier, packets: Repeated, rounds: int) -> Samples:
        """Packets that lie on the device: their headers read and classified; beside it the reading alone."""
        kernels, rules = self.kernels, self.kernels.prepared(classifier)
        frames = packets.frames(self.device)
        wrong = self._wrong_packets(classifier, rules, packets)
        work: dict[str, Callable[[], Any]] = {
            NAME: lambda: kernels.classify(kernels.keys(frames, "outer"), rules),
            DISSECTED: lambda: kernels.keys(frames, "outer"),
        }
        found: Samples = {}
        for _ in range(rounds):
            for name, each in work.items():
                rate = len(frames) / self._seconds(each)
                sample = record.sample(wrong, rows_per_s=round(rate), gb_per_s=round(rate * packets.row_bytes / 1e9, 2))
                found.setdefault(name, []).append(sample)
        part = replace(packets, copies=max(1, packets.copies // 4)).frames(
            self.device
        )  # an answer is larger than its packet
        rate = len(part) / self._seconds(lambda: kernels.dissect(part, list(DTYPES)))
        found[ALL_COLUMNS] = [record.sample(rows_per_s=round(rate))]
        return found

    def from_host(self, classifier: Classifier, packets: Repeated, rounds: int) -> Samples:
        """Packets in page-locked memory, in chunks on several streams: copied, classified, answers copied back.

        Beside it the same copies without the work between them.
        """
        with self.on_stream():
            rules = self.kernels.prepared(classifier)
        copies = max(1, CHUNK_BYTES // len(packets.data))
        chunks = [
            Chunk(replace(packets, copies=min(copies, packets.copies - first)), self.device)
            for first in range(0, packets.copies, copies)
        ]

        def run(work: Callable[[DeviceFrames], Tensor | None]) -> float:
            synchronize(self.device.name)
            start = time.perf_counter()
            for number, chunk in enumerate(chunks):
                with self.device.stream(number % STREAMS):
                    chunk.run(work, self.device)
            synchronize(self.device.name)
            return time.perf_counter() - start

        def classify(frames: DeviceFrames) -> Tensor:
            return self.kernels.classify(self.kernels.keys(frames, "outer"), rules)

        rows = sum(chunk.rows for chunk in chunks)
        found: Samples = {}
        kinds = {NAME: classify, COPIES: _nothing}
        for work in kinds.values():
            run(work)  # memory is taken
        for _ in range(rounds):
            for name, work in kinds.items():
                took_s = run(work)
                wrong = self._wrong_answers(classifier, packets, chunks[0].answer) if name == NAME else 0
                figures = {"rows_per_s": round(rows / took_s), "gb_per_s": round(packets.nbytes / took_s / 1e9, 2)}
                found.setdefault(name, []).append(record.sample(wrong, **figures))
        return found

    def _seconds(self, work: Callable[[], Any]) -> float:
        return seconds_each(work, self.device.name, self._least_s)

    def _wrong_rules(self, classifier: Classifier, rules: DeviceClassifier, keys: KeyColumns) -> int:
        some = keys.first(CHECKED)
        found: Array = self.kernels.classify(device_keys(some), rules).cpu().numpy()
        return int(np.count_nonzero(found != classifier.classify(some.host())))

    def _wrong_packets(self, classifier: Classifier, rules: DeviceClassifier, packets: Repeated) -> int:
        once = replace(packets, copies=1).frames(self.device)
        return self._wrong_answers(classifier, packets, self.kernels.classify(self.kernels.keys(once, "outer"), rules))

    def _wrong_answers(self, classifier: Classifier, packets: Repeated, answer: Tensor) -> int:
        """Answers to the first repetition of packets that the host does not give."""
        expected = classifier.classify(packets.keys)
        return int(np.count_nonzero(answer[: len(expected)].cpu().numpy() != expected))


@dataclass(frozen=True, eq=False)
class Repeated:
    """The packets of a capture, one after the other and again and again.

    Attributes:
        data: (m,) uint8, their bytes once.
        ends: (n + 1,) int64, where each begins and ends.
        link: link type of all of them.
        copies: how often they are repeated.
    """

    data: Array
    ends: Array
    link: int
    copies: int

    @classmethod
    def of(cls, tiles: Tiles, least_bytes: int) -> Repeated:
        """As often as it takes for so many bytes."""
        data, ends = tiles.frames()
        return cls(data, ends, tiles.link, max(1, -(-least_bytes // len(data))))

    @property
    def nbytes(self) -> int:
        """Of all packets."""
        return self.copies * len(self.data)

    @property
    def row_bytes(self) -> float:
        """Of a packet, on the average."""
        return len(self.data) / (len(self.ends) - 1)

    @property
    def keys(self) -> Keys:
        """The keys of the first repetition's outer headers, by netio."""
        links = np.full(len(self.ends) - 1, self.link, np.uint16)
        packets = dissect(self.data, self.ends[:-1], np.diff(self.ends), links)
        return Keys.of(packets.outer, packets.vlan_outer)

    def tensors(self, place: Any) -> tuple[Tensor, Tensor]:
        """Their bytes, and where each begins and ends, uint32."""
        import torch

        once = torch.from_numpy(self.data).to(place)
        ends = torch.from_numpy(self.ends).to(place)
        steps = torch.arange(self.copies, device=place)[:, None] * len(self.data)
        offsets = torch.cat([ends[:1], (ends[1:] + steps).flatten()])
        return once.repeat(self.copies), offsets.to(torch.uint32)

    def frames(self, device: Device) -> DeviceFrames:
        """All of them on the device."""
        blob, offsets = self.tensors(device.place)
        return DeviceFrames(blob, offsets, None, None, self.link)


class Chunk:
    """Packets in host memory that copies can take without the CPU, and room for their answers.

    Attributes:
        rows: packets.
        answer: (rows,) int32, of the last run.
    """

    def __init__(self, packets: Repeated, device: Device) -> None:
        import torch

        blob, offsets = packets.tensors("cpu")
        self.rows = len(offsets) - 1
        self.answer = torch.empty(self.rows, dtype=torch.int32)
        self._link = packets.link
        self._there = torch.zeros(self.rows, dtype=torch.int32, device=device.place)
        self._host = (blob, offsets)
        if device.is_cuda:
            self._host = (blob.pin_memory(), offsets.pin_memory())
            self.answer = self.answer.pin_memory()

    def run(self, work: Callable[[DeviceFrames], Tensor | None], device: Device) -> None:
        """Enqueue both copies and the work between them; without an answer other bytes come back, as many."""
        blob, offsets = (tensor.to(device.place, non_blocking=True) for tensor in self._host)
        found = work(DeviceFrames(blob, offsets, None, None, self._link))
        self.answer.copy_(self._there if found is None else found, non_blocking=True)


def _nothing(_: DeviceFrames) -> None:
    return None


def device_keys(keys: KeyColumns) -> DeviceKeys:
    """Keys as the kernels take them."""
    ends = (keys.source, keys.source, keys.destination, keys.destination)
    return DeviceKeys(4, ends, (keys.source_port, keys.destination_port), keys.protocol, None, None)
