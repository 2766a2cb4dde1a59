"""The CUDA device: what it refuses, what goes there and comes back, and an engine on it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.bus.columns import FIXED, Array, Field  # noqa: E402 - only where the extra is
from aikoryu.gpu.batch import Batch  # noqa: E402
from aikoryu.gpu.cuda import CudaDevice, DeviceRefused, check  # noqa: E402
from aikoryu.gpu.device import Device, OutOfMemory  # noqa: E402
from aikoryu.gpu.executor import Executor, Piece, Running  # noqa: E402
from aikoryu.gpu.job import Job, Part  # noqa: E402
from aikoryu.gpu.operation import Operation  # noqa: E402
from aikoryu.gpu.signature import Signature  # noqa: E402
from aikoryu.gpu.slab import Slab, align  # noqa: E402

STREAMS = 3
TURNS = 40


class TestCheck:
    """With a torch that is not here."""

    @staticmethod
    def torch(**cuda: Any) -> Any:
        """A torch built for CUDA 13 on a machine with one H100, but for what is given."""
        usual = {
            "is_available": True,
            "device_count": 1,
            "get_device_capability": (9, 0),
            "get_arch_list": ["sm_75", "sm_90", "sm_90a", "sm_100f", "compute_120"],
            "get_device_name": "H100",
        }
        built = cuda.pop("built", "13.0")
        answers = {name: lambda *_, value=value: value for name, value in (usual | cuda).items()}
        return SimpleNamespace(__version__="2.11", version=SimpleNamespace(cuda=built), cuda=SimpleNamespace(**answers))

    @pytest.mark.parametrize("capability", [(7, 5), (9, 0), (12, 1)])
    def test_gpu_that_suits_is_taken(self, capability: tuple[int, int]) -> None:
        check(self.torch(get_device_capability=capability), torch.device("cuda:0"))

    @pytest.mark.parametrize(
        ("changed", "place", "told"),
        [
            ({"built": None}, "cuda:0", "built without CUDA: install a CUDA build of torch"),
            ({"is_available": False}, "cuda:0", "CUDA 13.0.* finds no GPU it can use: see `nvidia-smi`"),
            ({}, "cuda:1", "there is no cuda:1: 1 GPUs are visible; set worker.device"),
            (
                {"get_device_capability": (7, 0)},
                "cuda:0",
                "H100 has compute capability 7.0, .* built for 7.5 and newer",
            ),
        ],
    )
    def test_gpu_that_does_not_is_refused_with_what_to_do(self, changed: dict[str, Any], place: str, told: str) -> None:
        with pytest.raises(DeviceRefused, match=told):
            check(self.torch(**changed), torch.device(place))


def test_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceRefused):
        CudaDevice("cuda:99", threads=1).open()


def random(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Any bits there are, NaNs among them."""
    numpy = FIXED[dtype]
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(numpy)
    size = int(np.prod(shape)) * numpy.itemsize
    return np.frombuffer(rng.bytes(size), numpy).reshape(shape).copy()


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    made = CudaDevice("cuda:0", threads=2)
    made.open()
    return made


@pytest.fixture
def slabs(device: CudaDevice) -> Iterator[list[Slab]]:
    """Registered slabs, two for each stream."""
    made = [Slab.create(1 << 20) for _ in range(2 * STREAMS)]
    for slab in made:
        device.register(slab)
    yield made
    for slab in made:
        device.unregister(slab)
        slab.close()


def there_and_back(device: CudaDevice, pieces: Array | list[Array], dtype: str) -> Array:
    joined = pieces if isinstance(pieces, np.ndarray) else np.concatenate(pieces)
    into = np.empty_like(joined)
    with device.stream():
        tensor = device.tensor(pieces, dtype)
        assert tensor.is_cuda
        assert tuple(tensor.shape) == joined.shape
        assert (tensor.dtype == torch.bfloat16) == (dtype == "bf16")
        device.fetch(tensor, into)
        device.synchronize()
    return into


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestCopies:
    @pytest.mark.parametrize("dtype", FIXED)
    def test_every_type_comes_back_bit_for_bit(self, device: CudaDevice, dtype: str) -> None:
        x = random(np.random.default_rng(1), dtype, (5, 3))
        assert there_and_back(device, x, dtype).tobytes() == x.tobytes()
        assert there_and_back(device, [x[:2], x[2:2], x[2:]], dtype).tobytes() == x.tobytes()

    @pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4), (1,), (2, 3, 4), (1000, 257)])
    def test_any_shape(self, device: CudaDevice, shape: tuple[int, ...]) -> None:
        x = random(np.random.default_rng(2), "f4", shape)
        assert there_and_back(device, x, "f4").tobytes() == x.tobytes()
        assert there_and_back(device, [x, x], "f4").tobytes() == 2 * x.tobytes()

    def test_result_of_any_strides(self, device: CudaDevice) -> None:
        x = np.random.default_rng(3).standard_normal((6, 8, 2)).astype(np.float32).view(np.complex64)[..., 0]
        with device.stream():
            tensor = device.tensor(x, "c8")
            views = [
                (tensor.T, x.T),
                (tensor[::2], x[::2]),
                (tensor[:, 3], x[:, 3]),
                (tensor[:1].expand(4, 8), np.repeat(x[:1], 4, 0)),
                (tensor.conj(), x.conj()),
                (tensor.conj().imag, -x.imag),
            ]
            got = [(device.to_host(view), expected) for view, expected in views]
            into = [np.zeros(expected.shape, expected.dtype) for _, expected in views]
            for (view, _), array in zip(views, into, strict=True):
                device.fetch(view, array)
            device.synchronize()
        for (host, expected), array in zip(got, into, strict=True):
            np.testing.assert_array_equal(host, expected)
            np.testing.assert_array_equal(array, expected)

    def test_slab_is_page_locked_while_it_is_registered(self, device: CudaDevice) -> None:
        slab = Slab.create(1 << 20)
        inside = torch.from_numpy(slab.array(4096, FIXED["f4"], (16,)))
        assert not inside.is_pinned()
        device.register(slab)
        assert inside.is_pinned()
        with pytest.raises(OSError, match="1048576 bytes of host memory cannot be page-locked"):
            device.register(slab)
        device.unregister(slab)
        assert not inside.is_pinned()
        slab.close()

    def test_slab_to_device_to_slab(self, device: CudaDevice, slabs: list[Slab]) -> None:
        source, target = (slab.array(64, FIXED["f4"], (1000, 100)) for slab in slabs[:2])
        source[...] = random(np.random.default_rng(4), "f4", source.shape)
        with device.stream():
            device.fetch(device.tensor(source, "f4"), target)
            device.synchronize()
        assert target.tobytes() == source.tobytes()

    def test_cupy_is_on_the_stream_that_torch_is_on(self, device: CudaDevice) -> None:
        cupy = pytest.importorskip("cupy")

        def are_together() -> bool:
            return bool(cupy.cuda.get_current_stream().ptr == torch.cuda.current_stream().cuda_stream)

        with device.stream(0):
            assert are_together()
            with device.stream(1):
                assert are_together()
            assert are_together()
        assert are_together()

    def test_threads_with_streams_of_their_own(self, device: CudaDevice, slabs: list[Slab]) -> None:
        def serve(thread: int) -> None:
            rng = np.random.default_rng(thread)
            a, c = (slab.array(0, FIXED["f8"], (100, 100)) for slab in slabs[2 * thread : 2 * thread + 2])
            for _ in range(TURNS):
                a[...] = rng.standard_normal(a.shape)
                with device.stream():
                    tensor = device.tensor([a[:30], a[30:]], "f8")
                    device.fetch(tensor @ tensor, c)
                    mark = device.mark()
                mark.wait()
                np.testing.assert_allclose(c, a @ a, rtol=1e-9, atol=1e-9)

        with ThreadPoolExecutor(STREAMS) as pool:
            for served in [pool.submit(serve, thread) for thread in range(STREAMS)]:
                served.result(120)


class Square(Operation):
    """The square of each matrix, and its trace; a negative corner is refused. Each row needs `room` bytes more."""

    name = "test.square"
    signature = Signature({"x": "f8[n,n]"}, {"y": "f8[n,n]", "trace": "f8"})
    room = 0

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        for row in np.flatnonzero(batch["x"][:, 0, 0] < 0).tolist():
            batch.reject(row, "bad_value", "negative")
        x = batch.tensor("x")
        if self.room:
            torch.empty(self.room * batch.rows, dtype=torch.uint8, device=device.place)
        return {"y": x @ x, "trace": x.diagonal(dim1=1, dim2=2).sum(1)}


def laid(slab: Slab, x: Array) -> Piece:
    rows = len(x)
    slab.view[:rows] = b"\1" * rows
    at = align(rows)
    slab.array(at, x.dtype, x.shape)[...] = x
    parts = [Part("x", Field("f8", x.shape[1:]), at, x.nbytes)]
    return Piece(Job(1, 0, Square.name, rows, parts, b"\x80", 0, align(at + x.nbytes)), slab)


def assert_squares(running: Running, xs: list[Array]) -> None:
    for done, piece, x in zip(running.wait(), running.pieces, xs, strict=True):
        assert done.failed == ""
        assert [row for row, _, _ in done.errors] == np.flatnonzero(x[:, 0, 0] < 0).tolist()
        y, trace = done.parts
        got = piece.slab.array(y.data, FIXED["f8"], x.shape)
        np.testing.assert_allclose(got, x @ x, rtol=1e-9, atol=1e-9)
        traces = piece.slab.array(trace.data, FIXED["f8"], (len(x),))
        np.testing.assert_allclose(traces, x.trace(axis1=1, axis2=2), rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestExecutor:
    def test_batches_on_several_streams(self, device: CudaDevice, slabs: list[Slab]) -> None:
        executor = Executor({Square.name: Square()}, device)
        rng = np.random.default_rng(5)
        running: list[tuple[Running, list[Array]] | None] = [None] * STREAMS
        for turn in range(TURNS):
            for stream in range(STREAMS):
                before = running[stream]
                if before is not None:
                    assert_squares(*before)
                # Fresh data of changing size over the same memory: what comes too early or too late is seen.
                xs = [rng.standard_normal((1 + (turn + part) % 5, 20, 20)) for part in range(2)]
                pieces = [laid(slab, x) for slab, x in zip(slabs[2 * stream : 2 * stream + 2], xs, strict=True)]
                running[stream] = executor.start(pieces, stream), xs
        for last in running:
            assert last is not None
            assert_squares(*last)

    def test_batch_that_does_not_fit_is_halved(self, device: CudaDevice, slabs: list[Slab]) -> None:
        torch.cuda.empty_cache()
        operation = Square()
        operation.room = torch.cuda.mem_get_info(device.place)[0] // 3
        x = np.random.default_rng(6).standard_normal((5, 4, 4))
        xs = [x[:2], x[2:]]
        executor = Executor({Square.name: operation}, device)
        assert_squares(executor.start([laid(slab, x) for slab, x in zip(slabs[:2], xs, strict=True)]), xs)

    def test_row_that_never_fits_fails_alone(self, device: CudaDevice, slabs: list[Slab]) -> None:
        operation = Square()
        operation.room = torch.cuda.mem_get_info(device.place)[1] * 2
        x = np.ones((2, 4, 4))
        (done,) = Executor({Square.name: operation}, device).run([laid(slabs[0], x)])
        assert done.failed == "operation_failed"
        assert "cuda:0 has no room for the batch: send smaller rows" in done.message
        assert_squares(Executor({Square.name: Square()}, device).start([laid(slabs[0], x)]), [x])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestMemory:
    def test_full_device_is_told_and_recovers(self, device: CudaDevice) -> None:
        with pytest.raises(torch.OutOfMemoryError) as full:
            torch.empty(2 * torch.cuda.mem_get_info(device.place)[1], dtype=torch.uint8, device=device.place)
        assert isinstance(device.explain(full.value), OutOfMemory)
        assert there_and_back(device, np.arange(3.0), "f8").tolist() == [0, 1, 2]

    def test_errors_of_the_operation_are_its_own(self, device: CudaDevice) -> None:
        with pytest.raises(RuntimeError) as raised:
            torch.ones(2, 3, device=device.place) @ torch.ones(2, 3, device=device.place)
        assert device.explain(raised.value) is raised.value

    def test_figures_follow_the_pool(self, device: CudaDevice) -> None:
        before = device.figures()["device_allocated_bytes"]
        tensor = torch.empty(1 << 20, dtype=torch.uint8, device=device.place)
        after = device.figures()
        assert after["device_allocated_bytes"] - before == tensor.nbytes
        assert after["device_reserved_bytes"] >= after["device_allocated_bytes"]

    def test_cupy_allocates_from_the_same_pool(self, device: CudaDevice) -> None:
        cupy = pytest.importorskip("cupy", reason="needs the extra `cuda12` or `cuda13`")
        before = device.figures()["device_allocated_bytes"]
        array = cupy.empty(1 << 20, cupy.uint8)
        assert device.figures()["device_allocated_bytes"] - before >= 1 << 20
        del array
        gc.collect()
        assert device.figures()["device_allocated_bytes"] <= before, "less, where other garbage went as well"


ENGINE = """
import asyncio, os, signal, sys
import numpy as np
from aikoryu.bus.client import Client
from aikoryu.bus.errors import BusError
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.subjects import Subjects
from aikoryu.config import BatchSettings, LogSettings, ModelSettings, Settings, WorkerSettings, configure_logging
from aikoryu.gpu.worker import Worker

device, operations = sys.argv[1:]
settings = Settings(
    models=ModelSettings(embed=()),
    worker=WorkerSettings(device=device, operations=(operations,)),
    batch=BatchSettings(max_bytes=1 << 20),
    log=LogSettings(level="critical"),
)

async def main():
    configure_logging(settings.log)
    bus = MemoryBus()
    worker = Worker(bus.connect("_WORKER"), settings)
    await worker.start()
    client = Client(bus.connect(), Subjects(), timeout_s=60, frame_bytes=1 << 16)
    await client.start()
    rng = np.random.default_rng(7)

    async def adds():
        a, b = rng.random((2, 256, 4, 4), np.float32)
        answer = await client.call_many("matrix.add", {"a": a, "b": b})
        np.testing.assert_array_equal(answer["c"], a + b)

    engine, place = worker._engines[0], worker._front.fallback.device

    async def back():
        while not place.slots:
            await asyncio.sleep(0.1)

    await adds()
    first = engine.host.pid
    os.kill(first, signal.SIGKILL)
    await adds()
    await back()
    assert engine.host.pid not in (0, first)
    await adds()
    try:
        await client.call("test.poison", {"x": np.float32(1)})
    except BusError as error:
        print("poison", error.code)
    await adds()
    await back()
    await adds()
    print("restarts", engine.restarts)
    await client.close()
    assert await worker.stop()

asyncio.run(main())
"""

POISON = """
import torch
from aikoryu.gpu.operation import operation

@operation("test.poison", inputs={"x": "f4"}, outputs={"y": "f4"})
def poison(x):
    return {"y": x[torch.full((len(x),), 1 << 20, device=x.device)]}
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_engine_serves_dies_and_comes_back(tmp_path: Path) -> None:
    """Also after an operation has poisoned its context, which no other can then use."""
    operations = tmp_path / "poison.py"
    operations.write_text(POISON)
    command = [sys.executable, "-c", textwrap.dedent(ENGINE), "cuda:0", str(operations)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=dict(os.environ))
    assert told.returncode == 0, told.stderr
    # The GPU's engine dies of it; on the CPU, where it is run again, the operation raises.
    assert told.stdout.splitlines() == ["poison operation_failed", "restarts 2"]
