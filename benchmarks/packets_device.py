"""Packets on a GPU without the bus: keys, packets and flows that stay there, and packets that come from host memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from aikoryu.gpu.device import Device
from aikoryu.gpu.packets.columns import DTYPES
from aikoryu.gpu.packets.device_flows import DeviceFlowTable
from aikoryu.gpu.packets.kernels import DeviceClassifier, DeviceFrames, DeviceKeys, PacketKernels
from aikoryu.netio.classify import Classifier
from aikoryu.netio.dissect import dissect
from aikoryu.netio.flow_table import FlowTable
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
WITH_DISSECT = f"{NAME}, with dissect"
CHECKED = 200_000
CHUNK_BYTES = 64 << 20
STREAMS = 3
ETHERNET = 1
FLOW_FRAME = bytes.fromhex(
    "020000000002020000000001080045000028000040004006000000000000000000000000000000000001000000015010fa0000000000"
)
"""A bare ACK; addresses and ports are 0."""
SOURCE_AT, PORT_AT = 26, 34
FLOW_GAP_NS = 100  # no flow is idle for as long as a time-out within a run
FLOW_ROOM = 1.6
"""Flows there is room for, to those that live: a table that is nearly full adds packets in small pieces."""

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
        part = packets.part(0, max(1, packets.copies // 4)).frames(self.device)  # an answer is larger than its packet
        rate = len(part) / self._seconds(lambda: kernels.dissect(part, list(DTYPES)))
        found[ALL_COLUMNS] = [record.sample(rows_per_s=round(rate))]
        return found

    def from_host(self, classifier: Classifier, packets: Repeated, rounds: int) -> Samples:
        """Packets in page-locked memory, in chunks on several streams: copied, classified, answers copied back.

        Beside it the same copies without the work between them.
        """
        with self.on_stream():
            rules = self.kernels.prepared(classifier)
        copies = max(1, CHUNK_BYTES // packets.once_bytes)
        chunks = [
            Chunk(packets.part(first, min(copies, packets.copies - first)), self.device)
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

    def flows(self, flows: int, batch: int, batches: int, rounds: int) -> dict[str, Samples]:
        """A table of live flows, and batches of packets of them: uniform over the flows, and by Zipf's law.

        Args:
            flows: that live.
            batch: packets of a batch.
            batches: different ones of each kind.
            rounds: times that they are all added.
        """
        import torch

        room = round(flows * FLOW_ROOM)
        table = DeviceFlowTable(self.kernels, capacity=room)
        generator = torch.Generator(self.device.name).manual_seed(1)
        clock_ns = 0

        def packets(ids: Tensor) -> tuple[DeviceFrames, Tensor, Tensor]:
            nonlocal clock_ns
            times = clock_ns + torch.arange(len(ids), device=self.device.place) * FLOW_GAP_NS
            clock_ns += len(ids) * FLOW_GAP_NS
            wire = torch.full((len(ids),), len(FLOW_FRAME), dtype=torch.uint32, device=self.device.place)
            return flow_frames(ids, self.device), times, wire

        start = time.perf_counter()
        for first in range(0, flows, batch):
            ids = torch.arange(first, min(first + batch, flows), device=self.device.place)
            frames, times, wire = packets(ids)
            table.update(self.kernels.dissect(frames, table.columns), times, wire)
        filled_s = time.perf_counter() - start
        wrong = abs(len(table) - flows) + self._wrong_flows(batch // 8 or 1)
        law = (torch.arange(1, flows + 1, device=self.device.place, dtype=torch.float64) ** -1.1).cumsum(0)
        found: dict[str, Samples] = {}
        for shape in ("flows-uniform", "flows-zipf"):
            draws = (torch.rand(batch, generator=generator, device=self.device.place) for _ in range(batches))
            drawn = [
                (draw * flows).long().clamp(max=flows - 1)
                if shape == "flows-uniform"
                else torch.searchsorted(law, draw.double() * law[-1]).clamp(max=flows - 1)
                for draw in draws
            ]
            found[shape] = {NAME: [], WITH_DISSECT: []}
            for _ in range(rounds):
                for name in found[shape]:
                    given = [packets(ids) for ids in drawn]
                    took_s = self._added(table, given, dissects=name == WITH_DISSECT)
                    figures = {
                        "rows_per_s": round(batch * batches / took_s),
                        "bytes_a_flow": round(table.bytes / room, 1),
                    }
                    found[shape][name].append(record.sample(wrong, **figures))
        found["flows-uniform"]["new flows, with dissect"] = [record.sample(rows_per_s=round(flows / filled_s))]
        return found

    def _added(self, table: DeviceFlowTable, given: list[tuple[DeviceFrames, Tensor, Tensor]], dissects: bool) -> float:
        """Seconds in which packets are added to a table."""
        ready = [] if dissects else [self.kernels.dissect(frames, table.columns) for frames, _, _ in given]
        self.device.synchronize()
        start = time.perf_counter()
        for number, (frames, times, wire) in enumerate(given):
            columns = self.kernels.dissect(frames, table.columns) if dissects else ready[number]
            table.update(columns, times, wire)
        self.device.synchronize()
        return time.perf_counter() - start

    def _wrong_flows(self, count: int) -> int:
        """Flows that a small table of the device and one of netio do not agree about."""
        import torch

        ids = torch.arange(3 * count, device=self.device.place) * 7919 % count
        frames = flow_frames(ids, self.device)
        times = torch.arange(len(ids), device=self.device.place) * FLOW_GAP_NS
        wire = torch.full((len(ids),), len(FLOW_FRAME), dtype=torch.uint32, device=self.device.place)
        there, here = DeviceFlowTable(self.kernels, capacity=2 * count), FlowTable(capacity=2 * count)
        there.update(self.kernels.dissect(frames, there.columns), times, wire)
        offsets = np.arange(len(ids), dtype=np.uint64) * np.uint64(len(FLOW_FRAME))
        lengths = np.full(len(ids), len(FLOW_FRAME), np.uint32)
        links = np.full(len(ids), ETHERNET, np.uint16)
        packets = dissect(frames.blob.cpu().numpy(), offsets, lengths, links)
        here.update(packets, times.cpu().numpy(), lengths)
        found, expected = there.flush(), here.flush()
        if len(found) != len(expected):
            return max(len(found), len(expected))
        return int(
            (found.packets != expected.packets).any(axis=1).sum()
            + (found.wire_bytes != expected.wire_bytes).any(axis=1).sum()
        )

    def _seconds(self, work: Callable[[], Any]) -> float:
        return seconds_each(work, self.device.name, self._least_s)

    def _wrong_rules(self, classifier: Classifier, rules: DeviceClassifier, keys: KeyColumns) -> int:
        some = keys.first(CHECKED)
        found: Array = self.kernels.classify(device_keys(some), rules).cpu().numpy()
        return int(np.count_nonzero(found != classifier.classify(some.host())))

    def _wrong_packets(self, classifier: Classifier, rules: DeviceClassifier, packets: Repeated) -> int:
        once = packets.part(0, 1).frames(self.device)
        return self._wrong_answers(classifier, packets, self.kernels.classify(self.kernels.keys(once, "outer"), rules))

    def _wrong_answers(self, classifier: Classifier, packets: Repeated, answer: Tensor) -> int:
        """Answers to the first repetition of packets that the host does not give."""
        expected = classifier.classify(packets.keys)
        return int(np.count_nonzero(answer[: len(expected)].cpu().numpy() != expected))


class Repeated:
    """The packets of a capture, one after the other and again and again.

    Args:
        tiles: the capture.
        least_bytes: of the packets.

    Attributes:
        copies: how often.
    """

    def __init__(self, tiles: Tiles, least_bytes: int) -> None:
        self._data, self._ends = tiles.frames()
        self._link = tiles.link
        self.copies = max(1, -(-least_bytes // len(self._data)))

    def part(self, first: int, copies: int) -> Repeated:
        """Some of the repetitions, which are all alike."""
        found = object.__new__(Repeated)
        found._data, found._ends, found._link, found.copies = self._data, self._ends, self._link, copies
        return found

    @property
    def once_bytes(self) -> int:
        """Of one repetition."""
        return len(self._data)

    @property
    def link(self) -> int:
        """Link type of all of them."""
        return self._link

    @property
    def nbytes(self) -> int:
        """Of all packets."""
        return self.copies * len(self._data)

    @property
    def row_bytes(self) -> float:
        """Of a packet, on the average."""
        return len(self._data) / (len(self._ends) - 1)

    @property
    def keys(self) -> Keys:
        """The keys of the first repetition's outer headers, by netio."""
        links = np.full(len(self._ends) - 1, self._link, np.uint16)
        packets = dissect(self._data, self._ends[:-1], np.diff(self._ends), links)
        return Keys.of(packets.outer, packets.vlan_outer)

    def tensors(self, place: Any) -> tuple[Tensor, Tensor]:
        """Their bytes, and where each begins and ends, uint32."""
        import torch

        once = torch.from_numpy(self._data.copy()).to(place)
        ends = torch.from_numpy(self._ends).to(place)
        steps = torch.arange(self.copies, device=place)[:, None] * len(self._data)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64, device=place), (ends[1:] + steps).flatten()])
        return once.repeat(self.copies), offsets.to(torch.uint32)

    def frames(self, device: Device) -> DeviceFrames:
        """All of them on the device."""
        blob, offsets = self.tensors(device.place)
        return DeviceFrames(blob, offsets, None, None, self._link)


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


def flow_frames(ids: Tensor, device: Device) -> DeviceFrames:
    """A packet of each of these flows, up to 2**32: every second one from the other end."""
    import torch

    rows, size = len(ids), len(FLOW_FRAME)
    frames = torch.frombuffer(bytearray(FLOW_FRAME), dtype=torch.uint8).to(device.place).repeat(rows, 1)
    is_answer = torch.arange(rows, device=device.place) % 2 == 1
    client, server = 0x0A00_0000 + (ids & 0xFF_FFFF), torch.full_like(ids, 0xC0A8_0001)
    port, service = 1024 + (ids >> 24), torch.full_like(ids, 443)
    for first, second, at, width in ((client, server, SOURCE_AT, 4), (port, service, PORT_AT, 2)):
        for place, value in enumerate((torch.where(is_answer, second, first), torch.where(is_answer, first, second))):
            for byte in range(width):
                column = at + place * width + byte
                frames[:, column] = (value >> 8 * (width - 1 - byte) & 0xFF).to(torch.uint8)
    offsets = (torch.arange(rows + 1, device=device.place) * size).to(torch.uint32)
    return DeviceFrames(frames.flatten(), offsets, None, None, ETHERNET)
