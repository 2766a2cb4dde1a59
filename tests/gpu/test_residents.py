"""Tensors as files and as copies on a device: budgets, time to live, ownership, several engines at once."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.bus.columns import FIXED, Array, Field  # noqa: E402 - only where torch is
from aikoryu.bus.errors import BadParameter, BadValue, Busy, NoTensor, NotOwner, TooLarge  # noqa: E402
from aikoryu.gpu.device import Device  # noqa: E402
from aikoryu.gpu.directory import WorkerDirectory  # noqa: E402
from aikoryu.gpu.origin import Origin  # noqa: E402
from aikoryu.gpu.origins import BLOCK_BYTES, DRAFT_S, SWEEP_S, UPLOAD_S, Origins  # noqa: E402
from aikoryu.gpu.residents import Handle, Residents, ResidentsSpec  # noqa: E402

MIB = 1 << 20
X = np.arange(12, dtype=np.float32).reshape(3, 4)


class Clock:
    """Wall time that only a test moves, s."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Origins:
    return Origins(tmp_path, MIB, clock)


def origin(array: Array, version: int = 1, owner: str = "me", ttl_s: float = 100.0) -> Origin:
    return Origin.make(Field({v: k for k, v in FIXED.items()}[array.dtype], array.shape), version, owner, ttl_s)


def put(store: Origins, key: str, array: Array, **fields: Any) -> bool:
    return store.write(key, origin(array, **fields), 0, array.reshape(-1))


def get(store: Origins, key: str, array: Array) -> Array:
    """The tensor as a whole, of the type of `array`."""
    return store.read(key, origin(array).field, 0)[0]


def files(path: Path) -> list[str]:
    return sorted(os.listdir(path))


# --- origins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FIXED.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0, 3), (2, 3, 4)])
def test_what_was_put_is_got(store: Origins, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
    assert put(store, "g.x", array)
    found, version = store.read("g.x", origin(array).field, 0)
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.shape, version) == (array.dtype, array.shape, 1)


def test_run_of_elements_is_got(store: Origins) -> None:
    put(store, "g.x", X)
    np.testing.assert_array_equal(store.read("g.x", Field("f4", (2, 2)), 5)[0], [[5, 6], [7, 8]])


@pytest.mark.parametrize(
    ("start", "field"),
    [(-1, Field("f4", (2,))), (11, Field("f4", (2,))), (0, Field("f4", (13,))), (0, Field("i4", (3, 4)))],
)
def test_elements_outside_or_of_another_dtype_are_refused(store: Origins, start: int, field: Field) -> None:
    put(store, "g.x", X)
    with pytest.raises(BadValue, match="take dtype and shape from its handle"):
        store.read("g.x", field, start)


@pytest.mark.parametrize("start", [-1, 11])
def test_elements_beyond_the_shape_are_not_put(store: Origins, start: int) -> None:
    with pytest.raises(BadValue, match="which has 12"):
        store.write("g.x", origin(X), start, X.reshape(-1)[:2])


@pytest.mark.parametrize(
    "key", ["", "x", "a.b.c", "../x.y", "a/b.c", ".x", "x.", "g.x.part", "g.x\n", "ä.x", "a" * 65 + ".x"]
)
def test_key_that_could_be_another_file_is_refused(store: Origins, tmp_path: Path, key: str) -> None:
    for call in (lambda: put(store, key, X), lambda: get(store, key, X), lambda: store.free(key, "me")):
        with pytest.raises(BadValue, match="write <group>"):
            call()
    assert files(tmp_path) == []


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf"), 1e9])
def test_time_to_live_that_is_none_is_refused(ttl_s: float) -> None:
    with pytest.raises(BadParameter, match="ttl_s"):
        origin(X, ttl_s=ttl_s)


def test_empty_owner_is_refused() -> None:
    with pytest.raises(BadValue, match="owner"):
        origin(X, owner="")


runs = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda r: (min(r), max(r))), max_size=12)


@settings(deadline=None)
@given(begun=runs, order=st.randoms(use_true_random=False))
def test_runs_in_any_order_repeated_and_overlapping(
    tmp_path_factory: pytest.TempPathFactory, begun: list[tuple[int, int]], order: Any
) -> None:
    array = np.arange(40, dtype=np.int64)
    path = tmp_path_factory.mktemp("runs")
    engines = [Origins(path, MIB), Origins(path, MIB)]
    there = np.zeros(40, bool)
    pieces = [*begun, (0, 13), (13, 14), (14, 40)]
    order.shuffle(pieces)
    done = False
    for number, (start, end) in enumerate(pieces):
        complete = engines[number % 2].write("g.x", origin(array), start, array[start:end])
        there[start:end] = True
        done = done or bool(there.all())
        assert complete == done
        if not done:
            with pytest.raises(NoTensor):
                get(engines[0], "g.x", array)
    np.testing.assert_array_equal(get(engines[1], "g.x", array), array)
    assert files(path) == ["g.x"]


def test_run_that_comes_again_after_the_end_changes_nothing(store: Origins, tmp_path: Path) -> None:
    flat = X.reshape(-1)
    store.write("g.x", origin(X), 0, flat[:6])
    assert store.write("g.x", origin(X), 6, flat[6:])
    assert store.write("g.x", origin(X), 6, flat[6:] * 7)
    np.testing.assert_array_equal(get(store, "g.x", X), X)
    assert files(tmp_path) == ["g.x"]


def test_another_version_takes_the_place(store: Origins, tmp_path: Path) -> None:
    put(store, "g.x", X)
    assert not store.write("g.x", origin(X, version=2), 0, -X.reshape(-1)[:6])
    np.testing.assert_array_equal(get(store, "g.x", X), X)
    assert store.write("g.x", origin(X, version=2), 6, -X.reshape(-1)[6:])
    np.testing.assert_array_equal(get(store, "g.x", X), -X)
    assert put(store, "g.x", X.astype("f8"), version=3)
    np.testing.assert_array_equal(get(store, "g.x", X.astype("f8")), X)
    assert files(tmp_path) == ["g.x"]
    assert (store.count, store.used_bytes) == (1, BLOCK_BYTES)


def test_runs_of_two_shapes_are_two_tensors(store: Origins) -> None:
    assert not store.write("g.x", origin(X), 0, X.reshape(-1)[:6])
    assert not store.write("g.x", origin(X.reshape(-1)[:9]), 3, X.reshape(-1)[3:9])
    assert store.write("g.x", origin(X), 6, X.reshape(-1)[6:])
    np.testing.assert_array_equal(get(store, "g.x", X), X)


def test_another_owner_may_read_but_neither_replace_nor_free(store: Origins) -> None:
    put(store, "g.x", X)
    with pytest.raises(NotOwner, match="replace"):
        put(store, "g.x", -X, owner="you", version=2)
    with pytest.raises(NotOwner, match="replace"):
        store.write("g.x", origin(X, owner="you"), 0, X.reshape(-1)[:6])
    with pytest.raises(NotOwner, match="free"):
        store.free("g.x", "you")
    np.testing.assert_array_equal(get(store, "g.x", X), X)


def test_first_of_two_owners_to_complete_a_key_has_it(store: Origins, tmp_path: Path) -> None:
    flat = X.reshape(-1)
    store.write("g.x", origin(X, owner="you"), 0, flat[:6])
    put(store, "g.x", X)
    with pytest.raises(NotOwner):
        store.write("g.x", origin(X, owner="you"), 6, flat[6:])
    draft = store.draft("g.y", origin(X, owner="you"))
    put(store, "g.y", X)
    with pytest.raises(NotOwner):
        store.publish(draft)
    assert [name for name in files(tmp_path) if name.startswith("g.y")] == ["g.y"]


def test_owners_token_is_not_kept(store: Origins, tmp_path: Path) -> None:
    put(store, "g.x", X, owner="secret-token")
    store.write("g.y", origin(X, owner="secret-token"), 0, X.reshape(-1)[:6])
    assert not any(b"secret-token" in (tmp_path / name).read_bytes() + name.encode() for name in files(tmp_path))


def test_free_drops_it_once(store: Origins, tmp_path: Path) -> None:
    put(store, "g.x", X)
    assert store.free("g.x", "me")
    assert not store.free("g.x", "me")
    with pytest.raises(NoTensor, match=r"no tensor 'g\.x' is here"):
        get(store, "g.x", X)
    assert (files(tmp_path), store.count, store.used_bytes) == ([], 0, 0)


def test_tensor_expires_after_its_last_use(store: Origins, clock: Clock, tmp_path: Path) -> None:
    put(store, "g.x", X)
    clock.now += 60
    get(store, "g.x", X)
    clock.now += 99
    get(store, "g.x", X)
    clock.now += 101
    with pytest.raises(NoTensor):
        get(store, "g.x", X)
    assert files(tmp_path) == []


def test_another_may_put_what_has_expired(store: Origins, clock: Clock) -> None:
    put(store, "g.x", X)
    clock.now += 101
    assert put(store, "g.x", -X, owner="you")
    np.testing.assert_array_equal(get(store, "g.x", X), -X)


def test_tidy_drops_what_nobody_asks_for(store: Origins, clock: Clock, tmp_path: Path) -> None:
    assert store.tidy() == set()
    put(store, "g.x", X)
    put(store, "g.y", X, ttl_s=1000)
    store.write("g.z", origin(X), 0, X.reshape(-1)[:6])
    assert store.tidy() is None
    clock.now += max(101, UPLOAD_S + 1)
    assert store.tidy() == {"g.y"}
    assert (files(tmp_path), store.count, store.used_bytes) == (["g.y"], 1, BLOCK_BYTES)
    clock.now += SWEEP_S - 1
    assert store.tidy() is None


@pytest.mark.parametrize("key", ["g.part", "g.draft", "part.part"])
def test_key_may_be_called_as_what_is_undone(store: Origins, clock: Clock, key: str) -> None:
    put(store, key, X)
    assert store.tidy() == {key}
    assert store.count == 1
    clock.now += 101
    assert store.tidy() == set()


def test_fresh_engine_finds_everything(store: Origins, clock: Clock, tmp_path: Path) -> None:
    put(store, "g.x", X)
    store.write("g.y", origin(X), 0, X.reshape(-1)[:6])
    fresh = Origins(tmp_path, MIB, clock)
    assert fresh.tidy() == {"g.x"}
    np.testing.assert_array_equal(get(fresh, "g.x", X), X)
    assert fresh.write("g.y", origin(X), 6, X.reshape(-1)[6:])
    with pytest.raises(NotOwner):
        fresh.free("g.x", "you")
    assert fresh.free("g.x", "me")


def test_tensor_beyond_the_budget_is_refused(store: Origins, tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match=r"raise residents\.host_bytes"):
        put(store, "g.x", np.zeros(MIB, np.uint8))
    with pytest.raises(TooLarge):
        store.write("g.x", origin(np.zeros(MIB, np.uint8)), 0, np.zeros(9, np.uint8))
    assert (files(tmp_path), store.used_bytes) == ([], 0)


def test_full_budget_is_busy_until_something_goes(store: Origins, clock: Clock, tmp_path: Path) -> None:
    half = np.zeros(MIB // 2 - 2 * BLOCK_BYTES, np.uint8)
    put(store, "g.x", half)
    put(store, "g.y", half, ttl_s=1000)
    with pytest.raises(Busy, match="free some"):
        put(store, "g.z", half)
    assert files(tmp_path) == ["g.x", "g.y"]
    clock.now += 101
    assert put(store, "g.z", half)
    assert files(tmp_path) == ["g.y", "g.z"]


def test_full_disk_is_busy_and_leaves_nothing(store: Origins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(Busy, match="disk"):
        store.write("g.x", origin(X), 0, X.reshape(-1)[:6])
    with pytest.raises(Busy, match="disk"):
        store.draft("g.x", origin(X))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Busy, match="disk"):
        put(store, "g.x", X)
    assert (files(tmp_path), store.used_bytes) == ([], 0)


def test_draft_is_invisible_until_it_is_published(store: Origins, tmp_path: Path) -> None:
    draft = store.draft("g.x", origin(X))
    draft.array[...] = X
    with pytest.raises(NoTensor):
        get(store, "g.x", X)
    store.publish(draft)
    np.testing.assert_array_equal(get(store, "g.x", X), X)
    store.discard(store.draft("g.y", origin(X)))
    assert (files(tmp_path), store.used_bytes) == (["g.x"], BLOCK_BYTES)


def test_draft_of_a_process_that_is_gone_goes_when_the_next_engine_starts(store: Origins, tmp_path: Path) -> None:
    kept = store.draft("g.x", origin(X))
    with subprocess.Popen(["true"]) as gone:
        pass
    left = Path(kept.path.replace(f"-{os.getpid()}~", f"-{gone.pid}~"))
    left.write_bytes(b"half")
    Origins(tmp_path, 1 << 20).tidy()
    assert [path.name for path in tmp_path.iterdir()] == [Path(kept.path).name]
    store.discard(kept)


def test_draft_may_take_long(store: Origins, clock: Clock, tmp_path: Path) -> None:
    draft = store.draft("g.x", origin(X))
    os.utime(draft.path, (clock.now, clock.now))
    clock.now += 10 * UPLOAD_S
    store.tidy()
    store.publish(draft)
    assert get(store, "g.x", X).shape == X.shape
    left = store.draft("g.y", origin(X))
    os.utime(left.path, (clock.now, clock.now))
    clock.now += DRAFT_S + 1
    store.tidy()
    assert (files(tmp_path), store.used_bytes) == ([], 0)


def test_many_threads_put_one_array_together(store: Origins, tmp_path: Path) -> None:
    array = np.random.default_rng(3).integers(0, 255, 100_000).astype(np.uint8)
    complete: list[bool] = []

    def part(number: int) -> None:
        for start in range(number * 1000, 100_000, 8000):
            complete.append(store.write("g.x", origin(array), start, array[start : start + 1000]))

    threads = [threading.Thread(target=part, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(complete) == 100
    assert any(complete)
    np.testing.assert_array_equal(get(store, "g.x", array), array)
    assert files(tmp_path) == ["g.x"]


# --- copies on the device --------------------------------------------------------------------------------------------


class Counting(Device):
    """A CPU that copies, as a GPU does, and counts it."""

    def __init__(self) -> None:
        super().__init__("cpu", threads=1)
        self.copied: list[int] = []
        self.fails = False

    def tensor(self, pieces: Any, dtype: str) -> Any:
        if self.fails:
            raise MemoryError
        tensor = super().tensor(pieces, dtype).clone()
        self.copied.append(tensor.nbytes)
        return tensor


@pytest.fixture
def device() -> Counting:
    return Counting()


Open = Callable[..., Residents]


@pytest.fixture
def opened(tmp_path: Path, clock: Clock, device: Counting) -> Open:
    def make(device_bytes: int = MIB) -> Residents:
        residents = Residents(ResidentsSpec(str(tmp_path), device_bytes, 64 * MIB), clock)
        residents.open(device)
        return residents

    return make


def handle(key: str, array: Array) -> Handle:
    field = origin(array).field
    return Handle(key, field.dtype, field.shape)


def keep(residents: Residents, key: str, array: Array, **fields: Any) -> Handle:
    put(residents.origins, key, array, **fields)
    return handle(key, array)


def test_tensor_is_loaded_once(opened: Open, device: Counting) -> None:
    residents = opened()
    x = keep(residents, "g.x", X)
    for _ in range(3):
        with residents.use({"x": x}) as found:
            np.testing.assert_array_equal(found["x"].numpy(), X)
    assert device.copied == [48]
    figures = residents.statistics()
    assert (figures["loads"], figures["hits"], figures["evictions"]) == (1, 2, 0)
    assert (figures["device_bytes"], figures["device_count"], figures["count"]) == (48, 1, 1)
    assert (figures["device_budget_bytes"], figures["host_budget_bytes"]) == (MIB, 64 * MIB)


def test_longest_unused_is_evicted_and_loaded_again(opened: Open) -> None:
    residents = opened(100)
    a, b, c = (keep(residents, f"g.{name}", X + number) for number, name in enumerate("abc"))
    for one in (a, b, a, c):  # b goes
        with residents.use({"x": one}):
            pass
    with residents.use({"x": a}):
        pass
    assert residents.statistics()["loads"] == 3
    with residents.use({"x": b}) as found:
        np.testing.assert_array_equal(found["x"].numpy(), X + 1)
    figures = residents.statistics()
    assert (figures["loads"], figures["evictions"], figures["device_bytes"]) == (4, 2, 96)


def test_pinned_tensor_stays(opened: Open) -> None:
    residents = opened(100)
    a, b, c = (keep(residents, f"g.{name}", X) for name in "abc")
    with residents.use({"a": a, "b": b}):
        with pytest.raises(Busy, match="run now"), residents.use({"c": c}):
            pass
        assert residents.statistics()["evictions"] == 0
    with residents.use({"c": c}):
        pass


def test_tensors_beyond_the_budget_are_refused(opened: Open) -> None:
    residents = opened(100)
    handles = {name: keep(residents, f"g.{name}", X) for name in "abc"}
    with pytest.raises(TooLarge, match=r"raise residents\.device_bytes"), residents.use(handles):
        pass
    with residents.use({"a": handles["a"], "also": handles["a"], "b": handles["b"]}) as found:
        assert found["a"] is found["also"]


@pytest.mark.parametrize("other", [Handle("g.x", "f8", (3, 4)), Handle("g.x", "f4", (4, 3))])
def test_handle_of_another_type_is_refused(opened: Open, other: Handle) -> None:
    residents = opened()
    keep(residents, "g.x", X)
    with pytest.raises(BadParameter, match="the tensor is f4"), residents.use({"x": other}):
        pass


def test_replaced_tensor_is_loaded_anew(opened: Open) -> None:
    residents = opened()
    x = keep(residents, "g.x", X)
    with residents.use({"x": x}) as before:
        keep(residents, "g.x", -X, version=2)
        with residents.use({"x": x}) as after:
            np.testing.assert_array_equal(after["x"].numpy(), -X)
            np.testing.assert_array_equal(before["x"].numpy(), X)
            assert residents.statistics()["device_bytes"] == 96
    assert residents.statistics()["device_bytes"] == 48


def test_another_engine_sees_what_this_one_changed(opened: Open) -> None:
    one, other = opened(), opened()
    x = keep(one, "g.x", X)
    with other.use({"x": x}):
        pass
    keep(one, "g.x", -X, version=2)
    with other.use({"x": x}) as found:
        np.testing.assert_array_equal(found["x"].numpy(), -X)
    one.free("g.x", "me")
    with pytest.raises(NoTensor), other.use({"x": x}):
        pass


def test_copies_go_with_their_origins(opened: Open, clock: Clock) -> None:
    residents = opened()
    x, y = keep(residents, "g.x", X), keep(residents, "g.y", X)
    with residents.use({"x": x, "y": y}):
        pass
    assert residents.free("g.x", "me")
    assert residents.statistics()["device_bytes"] == 48
    clock.now += 200
    assert residents.origins.count == 0
    assert residents.statistics()["device_bytes"] == 0


def test_load_that_fails_leaves_no_copy(opened: Open, device: Counting) -> None:
    residents = opened()
    x = keep(residents, "g.x", X)
    device.fails = True
    with pytest.raises(MemoryError), residents.use({"x": x}):
        pass
    assert residents.statistics()["device_bytes"] == 0
    device.fails = False
    with residents.use({"x": x}) as found:
        np.testing.assert_array_equal(found["x"].numpy(), X)


def test_result_is_kept(opened: Open) -> None:
    residents = opened()
    residents.keep("g.y", origin(X.T), torch.from_numpy(X).T)
    with residents.use({"y": handle("g.y", X.T)}) as found:
        np.testing.assert_array_equal(found["y"].numpy(), X.T)


def test_bfloat16_keeps_its_bits(opened: Open) -> None:
    residents = opened()
    field = Origin.make(Field("bf16", (3, 4)), 1, "me", 100)
    residents.keep("g.y", field, torch.from_numpy(X).bfloat16())
    with residents.use({"y": Handle("g.y", "bf16", (3, 4))}) as found:
        assert found["y"].dtype == torch.bfloat16
        np.testing.assert_array_equal(found["y"].float().numpy(), X)


def test_cpu_maps_the_file_and_never_changes_it(tmp_path: Path) -> None:
    residents = Residents(ResidentsSpec(str(tmp_path), MIB, MIB))
    residents.open(Device("cpu", threads=1))
    before = len(os.listdir("/proc/self/fd"))
    handles = {f"n{number}": keep(residents, f"g.n{number}", X) for number in range(20)}
    with residents.use(handles) as found:
        assert len(os.listdir("/proc/self/fd")) == before
        found["n3"].add_(1)
    np.testing.assert_array_equal(get(residents.origins, "g.n3", X), X)


def test_threads_share_copies(opened: Open, device: Counting) -> None:
    residents = opened(200)
    handles = [keep(residents, f"g.n{number}", X + number) for number in range(8)]
    wrong: list[str] = []

    def work(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 8, 200).tolist():
            try:
                with residents.use({"x": handles[number]}) as found:
                    if not np.array_equal(found["x"].numpy(), X + number):
                        wrong.append(f"{number}")
            except Busy:
                wrong.append("busy")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    figures = residents.statistics()
    assert figures["device_bytes"] == 48 * figures["device_count"] <= 200
    assert figures["loads"] == len(device.copied)
    assert figures["loads"] + figures["hits"] == 800


def test_without_a_directory_one_is_made_and_goes(device: Counting, clock: Clock) -> None:
    residents = Residents(ResidentsSpec(), clock)
    residents.open(device)
    residents.open(device)
    path = Path(residents.origins._directory)
    keep(residents, "g.x", X)
    assert path.is_dir()
    del residents
    assert not path.exists()


# --- the worker's directory ------------------------------------------------------------------------------------------


def test_directory_is_private_and_goes_with_the_worker(tmp_path: Path) -> None:
    directory = WorkerDirectory(str(tmp_path))
    directory.open()
    (directory.path / "file").write_text("something")
    assert directory.path.stat().st_mode & 0o777 == 0o700
    directory.close()
    directory.close()
    assert not directory.path.exists()


def test_directory_of_a_killed_worker_is_removed_by_the_next(tmp_path: Path) -> None:
    alive, killed = WorkerDirectory(str(tmp_path)), WorkerDirectory(str(tmp_path))
    alive.open()
    killed.open()
    (killed.path / "file").write_text("something")
    os.close(killed._lock)  # as the system does
    following = WorkerDirectory(str(tmp_path))
    following.open()
    assert alive.path.is_dir()
    assert following.path.is_dir()
    assert not killed.path.exists()
    alive.close()
    following.close()


def test_directory_that_nobody_gave_goes_with_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = subprocess.Popen(
        [sys.executable, "-c", _KEEPS_A_DIRECTORY],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with killed:
        assert killed.stdout is not None
        left = Path(killed.stdout.readline().decode().strip())
        residents = Residents(ResidentsSpec())
        residents.open(Device("cpu", 1))
        assert left.is_dir(), "its process is alive"
        killed.kill()
    assert left.is_dir()
    following = Residents(ResidentsSpec())
    following.open(Device("cpu", 1))
    assert not left.exists()
    assert len(list(tmp_path.glob("aikoryu-*/*"))) == 2
    del residents, following
    gc.collect()
    assert not list(tmp_path.glob("aikoryu-*/*"))


_KEEPS_A_DIRECTORY = """
import sys
from aikoryu.gpu.directory import directory_of
owner = type("Owner", (), {})()
print(directory_of(owner, ""), flush=True)
sys.stdin.read()
"""


def test_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"aikoryu-{os.getuid()}").mkdir(mode=0o755)
    with pytest.raises(RuntimeError, match=r"set residents\.directory"):
        WorkerDirectory(str(tmp_path)).open()


def test_directory_without_a_base_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"set residents\.directory"):
        WorkerDirectory(str(tmp_path / "nowhere")).open()


def test_relief_drops_the_copies_that_nobody_uses(tmp_path: Path) -> None:
    residents = Residents(ResidentsSpec(str(tmp_path), MIB))
    residents.open(Device("cpu", 1))
    for key in ("g.used", "g.idle"):
        put(residents.origins, key, X)
    handles = {key: Handle(key, "f4", X.shape) for key in ("g.used", "g.idle")}
    with residents.use({"idle": handles["g.idle"]}):
        pass
    with residents.use({"used": handles["g.used"]}) as found:
        residents.relieve()
        figures = residents.statistics()
        assert (figures["device_count"], figures["device_bytes"], figures["evictions"]) == (1, X.nbytes, 1)
        np.testing.assert_array_equal(found["used"].numpy(), X)
