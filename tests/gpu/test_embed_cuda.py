"""The embedding operation on a GPU, in half precision, against the CPU's float32."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `worker`")
for module in ("tokenizers", "safetensors"):
    pytest.importorskip(module, reason="needs the extra `models`")

from aikoryu.bus.columns import Field  # noqa: E402 - only where the extras are
from aikoryu.gpu.batch import Abandoned, Batch  # noqa: E402
from aikoryu.gpu.device import Device  # noqa: E402
from aikoryu.gpu.models import graphs  # noqa: E402
from aikoryu.gpu.models.store import Model, ModelMissing, find  # noqa: E402
from aikoryu.gpu.ops.embed import Embed  # noqa: E402

from .random_minilm import write  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

Array = np.ndarray[Any, Any]
COSINE = 0.999
ENGLISH = ["the", "time", "of", "day", "when", "a", "river", "runs", "under", "one", "old", "bridge", "home", "with"]


@pytest.fixture(scope="module", params=["real", "random"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    if request.param == "random":
        path = tmp_path_factory.mktemp("models") / "random-minilm"
        write(path)
        return find(str(path))
    directory = os.environ.get("AIKORYU_MODELS_DIRECTORY")
    try:
        return find("all-MiniLM-L6-v2", Path(directory) if directory else None)
    except ModelMissing:
        pytest.skip("needs the extra `models`")


@pytest.fixture(scope="module")
def device() -> Any:
    from aikoryu.gpu.cuda import CudaDevice

    made = CudaDevice("cuda:0", threads=8)
    made.open()
    return made


@pytest.fixture(scope="module")
def embed(model: Model, device: Any) -> Iterator[Embed]:
    operation = Embed(model)
    with device.stream():
        operation.load(device)
        device.synchronize()
    yield operation
    del operation
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def on_cpu(model: Model) -> Embed:
    operation = Embed(model)
    operation.load(Device("cpu", threads=8))
    return operation


def texts(seed: int, lengths: list[int]) -> list[str]:
    """Random texts of so many words, each about one token."""
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(ENGLISH, k=length)) for length in lengths]


def run(operation: Embed, device: Any, rows: list[str], alive: Array | None = None) -> Array:
    flags = np.ones(len(rows), bool) if alive is None else alive
    batch = Batch(len(rows), (("text", Field("utf8")),), {"text": rows}, None, flags, device)
    found = operation.run(batch, device)["embedding"]
    assert found.dtype in (torch.float32, np.float32)
    array = found if isinstance(found, np.ndarray) else found.cpu().numpy()
    device.synchronize()
    return array


def assert_same(found: Array, wanted: Array) -> None:
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found * wanted).sum(1).min() >= COSINE


def test_texts_of_every_length_are_those_of_the_cpu(embed: Embed, on_cpu: Embed, device: Any) -> None:
    lengths = [*range(0, 300, 3)]
    random.Random(1).shuffle(lengths)
    rows = texts(2, lengths)
    wanted = run(on_cpu, Device("cpu", threads=8), rows)
    with device.stream():
        assert_same(run(embed, device, rows), wanted)
        assert_same(run(embed, device, rows[:1]), wanted[:1])
    # Another text is another vector: the tolerance tells them apart.
    assert (wanted[1:] * wanted[:-1]).sum(1).min() < COSINE


def test_batch_of_several_groups(embed: Embed, on_cpu: Embed, device: Any) -> None:
    chosen = random.Random(3)
    rows = texts(4, [chosen.choice((1, 5, 20, 60, 250)) for _ in range(1024)])
    few = [*range(0, 1024, 16), 1023]
    with device.stream():
        found = run(embed, device, rows)
    assert_same(found[few], run(on_cpu, Device("cpu", threads=8), [rows[row] for row in few]))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_short_texts_beyond_a_groups_rows(embed: Embed, on_cpu: Embed, device: Any) -> None:
    rows = texts(5, [1, 2] * (graphs.SIZES[-1].rows // 2 + 3))
    with device.stream():
        found = run(embed, device, rows)
    assert_same(found[-40:], run(on_cpu, Device("cpu", threads=8), rows[-40:]))


def test_threads_at_once(embed: Embed, device: Any) -> None:
    threads = graphs.LANES + 2
    works = [texts(10 + number, [number * 7 % 60 + 1] * (20 + 90 * number)) for number in range(threads)]
    with device.stream():
        wanted = [run(embed, device, rows) for rows in works]
    together = threading.Barrier(threads)

    def work(number: int) -> float:
        worst = 0.0
        with device.stream():
            together.wait()
            for turn in range(30):
                which = (number + turn) % threads
                worst = max(worst, float(np.abs(run(embed, device, works[which]) - wanted[which]).max()))
        return worst

    with ThreadPoolExecutor(threads) as pool:
        assert max(pool.map(work, range(threads))) < 2e-3


def test_graphs_are_the_forward_without_them(embed: Embed, device: Any, model: Model) -> None:
    from aikoryu.gpu.models.bert import Bert
    from aikoryu.gpu.models.pooling import mean

    ids = np.random.default_rng(6).integers(1000, 20000, (50, 24))
    bert = Bert(model, device.place, torch.float16)
    with device.stream(), torch.inference_mode():
        found = embed._graphs(ids.tolist(), lambda rows: True)
        lengths = torch.full((50,), 24, device=device.place)
        (hidden,) = bert([(torch.from_numpy(ids).to(device.place), lengths)], lambda number: True)
        assert hidden is not None
        torch.testing.assert_close(found, mean(hidden, lengths), atol=2e-3, rtol=0)


def test_memory_does_not_grow(embed: Embed, device: Any) -> None:
    with device.stream():
        sizes = [1, 3, 64, 700, 1024]
        for rows in sizes:
            run(embed, device, texts(7, [20] * rows))
        allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        for turn in range(200):
            run(embed, device, texts(turn, [turn % 20 + 1] * sizes[turn % 5]))
        assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == (allocated, reserved)


def test_group_that_nobody_waits_for_is_left_out(embed: Embed, device: Any) -> None:
    rows = texts(8, [250] * 300)
    alive = np.ones(300, bool)
    alive[100:] = False
    with device.stream():
        found = run(embed, device, rows, alive)
    np.testing.assert_allclose(np.linalg.norm(found[:64], axis=1), 1, atol=1e-5)
    assert not found[-64:].any()


def test_abandoned_batch_gives_its_lane_back(embed: Embed, device: Any) -> None:
    rows = texts(9, [20] * 50)
    with device.stream():
        wanted = run(embed, device, rows)
        for _ in range(graphs.LANES + 1):
            with pytest.raises(Abandoned):
                embed._graphs([[101, 102]] * 2, _abandoned)
        np.testing.assert_allclose(run(embed, device, rows), wanted, atol=2e-3)


def _abandoned(rows: slice) -> bool:
    raise Abandoned
