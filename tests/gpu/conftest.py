"""A front over the in-memory bus and the in-process engine, and callers that speak the wire format by hand."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from aikoryu.bus.columns import Values, pack, unpack
from aikoryu.bus.errors import BusError
from aikoryu.bus.frames import Cancel, Reply, Request, decode_reply, encode
from aikoryu.bus.memory import MemoryBus, MemoryConnection
from aikoryu.bus.service import Service
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message
from aikoryu.gpu.batch import Batch
from aikoryu.gpu.device import Device
from aikoryu.gpu.front import Front
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.operation import Operation
from aikoryu.gpu.ops.echo import Echo
from aikoryu.gpu.packets.kernels import PacketKernels
from aikoryu.gpu.plan import Limits
from aikoryu.gpu.signature import Signature
from aikoryu.gpu.telemetry import Telemetry

from . import host_kernels

TICKS = 12  # loop turns in which whatever was started has ended: publish, deliver, pump, run, answer, publish, deliver


class Scale(Operation):
    """Times a number."""

    class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        factor: float = 2.0

    name = "test.scale"
    signature = Signature({"x": "f4[...]"}, {"y": "f4[...]"})
    parameters = Parameters

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        return {"y": batch["x"] * np.float32(batch.parameters.factor)}


class Upper(Operation):
    """Upper case; refuses the word "refuse"."""

    name = "test.upper"
    signature = Signature({"text": "utf8"}, {"text": "utf8", "length": "i8"})

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        texts = batch["text"]
        for row, text in enumerate(texts):
            if text == "refuse":
                batch.reject(row, "bad_value", "this word is refused")
        return {"text": [text.upper() for text in texts], "length": np.array([len(text) for text in texts])}


class Wide(Operation):
    """A text to many numbers: its answers weigh more than its requests."""

    name = "test.wide"
    signature = Signature({"text": "utf8"}, {"y": "f4[1024]"})

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        lengths = np.array([len(text) for text in batch["text"]], np.float32)
        return {"y": np.repeat(lengths[:, None], 1024, axis=1)}


class Careful(Operation):
    """Looks between its steps whether anybody still waits."""

    name = "test.careful"
    signature = Signature({"x": "f4"}, {"x": "f4"})

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        batch.checkpoint()
        return {"x": batch["x"]}


class Wrong(Operation):
    """Does the one thing wrong that its parameter says."""

    class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        how: str = ""

    name = "test.wrong"
    signature = Signature({"x": "f4[n]"}, {"y": "f4[n]", "text": "utf8"})
    parameters = Parameters

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        x = batch["x"]
        fine: dict[str, Any] = {"y": x, "text": ["fine"] * batch.rows}
        match batch.parameters.how:
            case "raises":
                raise ZeroDivisionError("secret detail")
            case "raises-a-bus-error":
                raise BusError("as it says")
            case "shape":
                return {**fine, "y": x[:, :1]}
            case "rank":
                return {**fine, "y": x[:, 0]}
            case "rows":
                return {**fine, "y": x[:-1]}
            case "dtype":
                return {**fine, "y": x.astype(np.float64)}
            case "missing":
                return {"text": ["fine"] * batch.rows}
            case "bytes":
                return {**fine, "text": [b"\xff"] * batch.rows}
            case "mixed":
                return {**fine, "text": ["fine", *[b"bytes"] * (batch.rows - 1)]}
            case "surrogate":
                return {**fine, "text": ["\ud800"] * batch.rows}
            case "texts":
                return {**fine, "text": ["fine"] * (batch.rows + 1)}
            case "nothing":
                return None  # type: ignore[return-value]
        return fine


@dataclass
class Caller:
    """A client that writes its frames by hand and keeps every reply."""

    connection: MemoryConnection
    number: int
    subjects: Subjects
    replies: list[Reply] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    last_id: int = 0
    listening: Any = None

    @property
    def inbox(self) -> str:
        return f"{self.connection.inbox_prefix}.{self.number:x}"

    async def listen(self) -> None:
        self.listening = await self.connection.subscribe(f"{self.inbox}.*", self._on_reply)

    def _on_reply(self, message: Message) -> None:
        if message.data:
            self.raw.append(message.data)
            if not message.data.startswith(b"{"):
                self.replies.append(decode_reply(message.data))

    async def send(
        self, operation: str, columns: Mapping[str, Any], p: Mapping[str, Any] | None = None, **fields: Any
    ) -> int:
        """Publish one frame; columns are values to pack or columns as they are."""
        packed = {
            name: pack(values) if isinstance(values, (np.ndarray, list)) else values for name, values in columns.items()
        }
        rows = fields.pop("n", None)
        if rows is None:
            rows = len(next(iter(columns.values())))
        self.last_id += 1
        id_: int = fields.pop("id", self.last_id)
        raw = msgspec.Raw(msgspec.msgpack.encode(p or {}))
        request = Request(v=1, n=rows, client=self.number, id=id_, cols=packed, p=raw, **fields)
        await self.publish(operation, encode(request), id_)
        return id_

    async def publish(self, operation: str, payload: bytes, id_: int = 0) -> None:
        await self.connection.publish(self.subjects.operation(operation), payload, f"{self.inbox}.{id_}")

    async def cancel(self, id_: int, rows: list[int] | None = None) -> None:
        await self.connection.publish(self.subjects.control, encode(Cancel(self.number, id_, rows or [])))

    def answers(self, id_: int) -> list[Reply]:
        return [reply for reply in self.replies if reply.id == id_]

    def outcome(self, id_: int, rows: int) -> dict[int, Any]:
        """By row, the answer's columns or the error's code; checks that no row was answered twice."""
        found: dict[int, Any] = {}

        def put(row: int, value: Any) -> None:
            assert row not in found, f"row {row} was answered twice"
            found[row] = value

        for reply in self.answers(id_):
            for error in reply.err:
                for row in range(error.row, error.row + (error.n or rows - error.row)):
                    put(row, error.code)
            total = sum(count for _, count in reply.at)
            columns: dict[str, Values] = {name: unpack(column, total) for name, column in reply.cols.items()}
            position = 0
            for start, count in reply.at:
                for row in range(start, start + count):
                    put(row, {name: values[position] for name, values in columns.items()})
                    position += 1
        return found

    def codes(self, id_: int) -> list[str]:
        return [error.code for reply in self.answers(id_) for error in reply.err]


class Rig:
    """A front, what is around it, and the callers a test needs."""

    def __init__(self, limits: Limits, slots: int, slab_bytes: int, max_payload: int) -> None:
        made: list[Operation] = [Echo(), Scale(), Upper(), Wide(), Careful(), Wrong()]
        self.operations = {operation.name: operation for operation in made}
        self.bus = MemoryBus(max_payload)
        self.subjects = Subjects()
        self.transport = self.bus.connect("_WORKER")
        self.engine = InlineEngine(self.operations, slots=slots, slab_bytes=slab_bytes)
        self.service = Service(self.transport, self.subjects, "worker", reply_prefixes=("_INBOX",))
        self.telemetry = Telemetry()
        self.front = Front(self.service, [self.engine], self.operations, limits, self.telemetry)
        self.planner = self.front.planner

    async def start(self) -> None:
        await self.engine.start()
        await self.service.start()
        for name in self.operations:
            await self.service.serve(name, self.front.accept)

    async def stop(self) -> None:
        self.engine.release()
        self.front.stop()
        await self.engine.stop()

    async def caller(self) -> Caller:
        connection = self.bus.connect()
        caller = Caller(connection, int(connection.inbox_prefix.removeprefix("_INBOX.memory")), self.subjects)
        await caller.listen()
        return caller

    async def settle(self, ticks: int = TICKS) -> None:
        """Let the loop turn until what was started has ended."""
        for _ in range(ticks):
            await asyncio.sleep(0)

    def batches(self) -> list[int]:
        return [job.rows for job in self.engine.jobs]

    def assert_idle(self) -> None:
        """Nothing is kept of what came."""
        assert self.service.held == {}
        planner = self.planner
        assert (planner.running, planner.waiting_rows, planner.waiting_bytes) == (0, 0, 0)
        assert sorted(self.front._stations[0].free) == list(range(len(self.engine.slabs)))


StartRig = Callable[..., Awaitable[Rig]]


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    """An open device of each kind; a test that runs on CUDA is skipped where there is none."""
    if request.param == "cpu":
        found = Device("cpu", threads=1)
    else:
        torch = pytest.importorskip("torch", reason="needs the extra `worker`")
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        from aikoryu.gpu.cuda import CudaDevice

        found = CudaDevice("cuda:0", threads=1)
    found.open()
    return found


@pytest.fixture
def without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines start as on a machine without torch, which is much faster; echo does not need it."""
    (tmp_path / "torch.py").write_text("raise ImportError('not on this machine')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


@pytest.fixture
async def start_rig() -> AsyncIterator[StartRig]:
    """Start a front with the given limits."""
    async with AsyncExitStack() as stack:

        async def start(
            limits: Limits | None = None, slots: int = 2, slab_bytes: int = 4 << 20, max_payload: int = 1 << 20
        ) -> Rig:
            # One batch's pace is chance here: it must not size the next.
            rig = Rig(replace(limits or Limits(), target_s=3600.0), slots, slab_bytes, max_payload)
            await rig.start()
            stack.push_async_callback(rig.stop)
            return rig

        yield start


@pytest.fixture
async def rig(start_rig: StartRig) -> Rig:
    return await start_rig()


@pytest.fixture(params=["netio", "kernels"])
def packet_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of the CPU, and that of a GPU with its kernels compiled for the host."""
    if request.param == "kernels":
        if host_kernels.COMPILER is None:
            pytest.skip("needs a C++ compiler")
        monkeypatch.setattr(PacketKernels, "on", lambda device: PacketKernels(device, host_kernels.compiled()))
