"""Replay: a recording of the bus, or the packets of a capture, sent again at a pace, and the answers counted.

report = await replay(bus, "night.rec", Plan(Speed.parse("max")), verify=Tolerance())
assert not report.differing, report.differences
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from ..bus.client import MANY_BYTES, MANY_ROWS, Client
from ..bus.columns import Array, pack
from ..bus.differences import Difference, Tolerance, compare
from ..bus.errors import BusError
from ..bus.exchange import Outcome, Part
from ..bus.frames import Reply, Request, encode
from ..bus.outbox import cuts, encode_parameters
from ..bus.pending import LEAST_ROW_BYTES, Pending
from ..bus.recording import Recording
from ..netio.capture_frames import CaptureFrames
from ..netio.pacing import Pacer, Plan, Run
from .bus import Bus
from .replay_report import Report, Tally

IN_FLIGHT_BYTES = 4 * 1024 * 1024  # sent and not answered, as in `call_many`; beyond it what is due waits, and is late
UNTIMED_S = 30.0  # deadline of a request that was recorded without one
DIFFERENCES = 20

# Answered by what a worker keeps; others say `pure: false` when they are asked.
STATEFUL = ("matrix.put", "matrix.get", "matrix.free")
HANDLES = "matrix.eval."  # followed by a partition: an expression of tensors that were put

# How long before the time the loop's own timer is left, whose ticks are 1 ms; then a thread sleeps; the rest is turns
# of the loop. So a request leaves 0.1 ms late at most times, and little is burnt.
COARSE_NS = 3_000_000
FINE_NS = 150_000


class Sent(NamedTuple):
    """A request that is due.

    Attributes:
        operation: its subject below the root.
        request: the frame; client, number and deadline are replaced.
        number: its place in the recording.
    """

    operation: str
    request: Request
    number: int


class Source(Protocol):
    """What is replayed: items with a time and a size, and the frames they are.

    Attributes:
        times_ns: (n,) int64, when each item was recorded.
        bits: (n,) int64, size of each.
    """

    @property
    def times_ns(self) -> Array: ...
    @property
    def bits(self) -> Array: ...

    def frames(self, run: Run) -> Iterator[Sent]:
        """The requests that consecutive items make."""


class RecordedFrames:
    """The requests of a recording.

    Args:
        recording: an open one.
        skipped: names of operations that are left out, with all that follow below them.
    """

    def __init__(self, recording: Recording, skipped: frozenset[str]) -> None:
        self.recording = recording
        self.skipped = [name for name in recording.names if _below(name, skipped)]
        left_out = np.isin(recording.operations, [recording.names.index(name) for name in self.skipped])
        self._numbers = np.flatnonzero(~left_out)
        self.times_ns: Array = recording.times_ns[self._numbers]
        self.bits: Array = recording.sizes[self._numbers] * 8

    def frames(self, run: Run) -> Iterator[Sent]:
        """One request an item."""
        for number in self._numbers[run.first : run.first + run.size].tolist():
            exchange = self.recording.exchange(number)
            yield Sent(exchange.operation, exchange.asked, number)


class PacketFrames:
    """The packets of a capture as requests for one operation: those that are due together share a frame."""

    def __init__(self, packets: CaptureFrames, operation: str, parameters: bytes) -> None:
        self.times_ns, self.bits = packets.times_ns, packets.bits
        self._packets = packets
        self._operation = operation
        self._parameters = msgspec.Raw(parameters or b"\x80")

    def frames(self, run: Run) -> Iterator[Sent]:
        """As few as their size allows."""
        rows = self._packets.rows(run)
        for first, end in cuts(rows, MANY_BYTES, MANY_ROWS):
            columns = {name: pack(values[first:end]) for name, values in rows.items()}
            yield Sent(
                self._operation, Request(v=1, n=end - first, cols=columns, p=self._parameters), run.first + first
            )


class Replay:
    """One replay, under way.

    Args:
        client: of the bus.
        source: what is sent.
        plan: how it is paced.
        verify: compares answers with those recorded, within this; of a recording only.
        differences: most of them that are kept.

    Attributes:
        report: what came of it so far.
    """

    def __init__(
        self,
        client: Client,
        source: Source,
        plan: Plan,
        verify: Tolerance | None = None,
        differences: int = DIFFERENCES,
    ) -> None:
        self.report = Report()
        self._client = client
        self._source = source
        self._pacer = Pacer(source.times_ns, source.bits, plan)
        self._verify = verify
        self._most = differences
        self._under_way: dict[int, _Replayed] = {}
        self._in_flight_bytes = 0
        self._changed = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self.report.paced = self._pacer.paced
        if isinstance(source, RecordedFrames):
            recording = source.recording
            for name in source.skipped:
                self.report.skipped[name] = int(np.count_nonzero(recording.operations == recording.names.index(name)))

    async def run(self) -> Report:
        """Send everything, and wait for the answers; cancelled, it withdraws what is under way.

        Raises:
            BusError: a request of the recording is none, or the client is closed.
        """
        start_ns = time.monotonic_ns()
        self._sending = asyncio.create_task(self._send_all(start_ns))
        try:
            await asyncio.wait({self._sending})
            if not self._sending.cancelled():
                self._sending.result()
            await self._until_flying(0)
        finally:
            self._sending.cancel()
            for frame in list(self._under_way.values()):
                self._client.withdraw(frame.id, [])
            self.report.seconds = (time.monotonic_ns() - start_ns) / 1e9
        return self.report

    def stop(self) -> None:
        """Send no more; `run` returns when what was sent is answered."""
        if self._sending is not None:
            self._sending.cancel()

    async def _send_all(self, start_ns: int) -> None:
        self._pacer.begin(start_ns)
        while (at := self._pacer.next_at()) is not None:
            await _until(at)
            await self._until_flying(IN_FLIGHT_BYTES)
            run = self._pacer.due(time.monotonic_ns())
            for sent in self._source.frames(run) if run.size else ():
                self._send(sent)
            await asyncio.sleep(0)  # what was sent leaves, and answers come in, before more is sent

    def _send(self, sent: Sent) -> None:
        client, request = self._client, sent.request
        timeout_s = request.ttl_ms / 1000 if request.ttl_ms else UNTIMED_S
        id_ = client.next_id()
        fresh = msgspec.structs.replace(request, client=client.number, id=id_, ttl_ms=max(1, round(1000 * timeout_s)))
        subject = f"{client.subjects.root}.{sent.operation}"
        deadline = asyncio.get_running_loop().time() + timeout_s
        frame = _Replayed(id_, subject, encode(fresh), request.n, deadline, sent, self._done)
        self._under_way[id_] = frame
        self._in_flight_bytes += frame.weight
        tally = self.report.operations.setdefault(sent.operation, Tally())
        tally.frames += 1
        tally.rows += request.n
        client.send(frame)

    def _done(self, frame: _Replayed) -> None:
        """A frame was answered whole, or given up."""
        del self._under_way[frame.id]
        self._in_flight_bytes -= frame.weight
        self._changed.set()
        outcome = frame.outcome
        tally = self.report.operations[frame.sent.operation]
        for code, _ in outcome.errors.values():
            tally.errors[code] += 1
        if frame.answered:
            tally.answered += 1
            tally.latencies.add(time.monotonic_ns() - frame.sent_ns)
        if self._verify is not None and isinstance(self._source, RecordedFrames):
            self._compare(frame, tally, self._source.recording, self._verify)

    def _compare(self, frame: _Replayed, tally: Tally, recording: Recording, tolerance: Tolerance) -> None:
        number, operation = frame.sent.number, frame.sent.operation
        try:
            then = recording.exchange(number).answer
        except BusError:  # somebody else's words, recorded as they were
            then = Outcome(frame.rows)
        compared = compare(then, frame.outcome, tolerance)
        tally.compared += compared.rows
        tally.untold += compared.untold
        tally.differing += len(compared.differing)
        differences = self.report.differences
        while len(differences) < self._most and (found := next(compared.found, None)) is not None:
            differences.append(Difference(number, operation, *found))

    async def _until_flying(self, most_bytes: int) -> None:
        """Wait until so much, or less, is unanswered."""
        while self._in_flight_bytes > most_bytes:
            self._changed.clear()
            await self._changed.wait()


async def replay(
    bus: Bus,
    path: str | Path,
    plan: Plan | None = None,
    *,
    verify: Tolerance | None = None,
    stateful: bool = False,
    differences: int = DIFFERENCES,
) -> Report:
    """Send the requests of a recording again, under numbers of this client and with deadlines that begin anew.

    Args:
        bus: where to.
        path: the recording.
        plan: how fast, and how often; at its own pace, once, if there is none.
        verify: compare the answers with those recorded, floats within this tolerance.
        stateful: send also what changes, or needs, what a worker keeps: `matrix.put`, and operations that are not pure.
        differences: most of them that are kept in the report; all are counted.

    Raises:
        BadRecording: the file is none.
        BusError: the client is closed.
    """
    recording = Recording(path)
    source = RecordedFrames(recording, frozenset() if stateful else await stateful_operations(bus))
    return await Replay(bus.client, source, plan or Plan(), verify, differences).run()


async def replay_capture(
    bus: Bus,
    packets: CaptureFrames,
    operation: str,
    parameters: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
) -> Report:
    """Send the packets of a capture as rows of one operation.

    Args:
        bus: where to.
        packets: of an open capture.
        operation: what takes packets, `packets.dissect`.
        parameters: its parameters.
        plan: as for `replay`; its items are packets.

    Raises:
        ValueError: the operation's name is none.
    """
    source = packet_frames(bus, packets, operation, parameters or {})
    return await Replay(bus.client, source, plan or Plan()).run()


def packet_frames(bus: Bus, packets: CaptureFrames, operation: str, parameters: Mapping[str, Any]) -> PacketFrames:
    """Packets as requests of an operation; of `packets.classify` to the worker that keeps the rules it names.

    Raises:
        ValueError: the operation's name is none.
    """
    bus.client.subjects.operation(operation)
    if operation == "packets.classify" and isinstance(rules := parameters.get("rules"), str):
        operation = bus.packets.rules.operation("classify", rules)
    return PacketFrames(packets, operation, encode_parameters(parameters))


async def stateful_operations(bus: Bus) -> frozenset[str]:
    """Operations that a replay leaves out: those known to keep something, and those that workers say are not pure."""
    root = f"{bus.client.subjects.root}."
    impure = set()
    for worker in await bus.workers():
        for endpoint in worker["endpoints"]:  # type: ignore[attr-defined]
            if endpoint["metadata"].get("pure") == "false":
                impure.add(endpoint["subject"].removeprefix(root).removesuffix(".*"))
    return frozenset({*STATEFUL, HANDLES, *impure})


class _Replayed(Pending):
    """A request that was sent, and the answers to it as they come."""

    __slots__ = ("_on_done", "answered", "outcome", "sent", "sent_ns", "weight")

    def __init__(
        self,
        id_: int,
        subject: str,
        payload: bytes,
        rows: int,
        deadline: float,
        sent: Sent,
        on_done: Callable[[_Replayed], None],
    ) -> None:
        super().__init__(id_, subject, payload, rows, deadline, False)
        self.sent = sent
        self.sent_ns = time.monotonic_ns()
        self.outcome = Outcome(rows)
        self.answered = True
        self.weight = max(len(payload), rows * LEAST_ROW_BYTES)
        self._on_done = on_done

    def deliver(self, reply: Reply) -> None:
        self.outcome.add(Part.of(reply))
        self.open = self.outcome.open
        if self.open <= 0:
            self.close()

    def fail(self, error: BusError) -> None:
        self.answered = False
        super().fail(error)

    def fail_rows(self, first: int, count: int, error: BusError) -> None:
        self.outcome.fail(first, count, error.code, str(error))

    def close(self) -> None:
        super().close()
        self._on_done(self)


def _below(name: str, operations: frozenset[str]) -> bool:
    """Whether an operation is one of these, or a partition of one."""
    return any(name == each or name.startswith(f"{each.removesuffix('.')}.") for each in operations)


async def _until(at_ns: int) -> None:
    """Return at this monotonic time, or as soon as it has passed."""
    while (left := at_ns - time.monotonic_ns()) > 0:
        if left > COARSE_NS:
            await asyncio.sleep((left - COARSE_NS / 2) / 1e9)
        elif left > FINE_NS:
            await asyncio.to_thread(time.sleep, (left - FINE_NS / 2) / 1e9)
        else:
            await asyncio.sleep(0)
