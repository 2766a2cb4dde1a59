"""The engine process: batches run, deaths noticed, nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from aikoryu.bus.client import Client
from aikoryu.bus.columns import Field
from aikoryu.bus.errors import EngineLost
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.subjects import Subjects
from aikoryu.config import BatchSettings, CpuSettings, LogSettings, ModelSettings, Settings, WorkerSettings
from aikoryu.gpu import engine_process
from aikoryu.gpu import host as hosts
from aikoryu.gpu.engine import EngineLink, EngineSpec
from aikoryu.gpu.host import ChildEngine, EngineHost
from aikoryu.gpu.job import Done, Job, Part
from aikoryu.gpu.registry import Catalogue
from aikoryu.gpu.worker import Worker

WAIT_S = 30.0
X = np.arange(6, dtype=np.float32).reshape(3, 2)

StartEngine = Callable[..., Awaitable["Watched"]]


class Watched:
    """An engine and what it reported."""

    def __init__(self, engine: ChildEngine) -> None:
        self.engine = engine
        self.done: asyncio.Queue[Done] = asyncio.Queue()
        self.events: asyncio.Queue[str] = asyncio.Queue()
        engine.on_done = self.done.put_nowait
        engine.on_lost = lambda: self.events.put_nowait("lost")
        engine.on_ready = lambda: self.events.put_nowait("ready")

    async def next_event(self) -> str:
        async with asyncio.timeout(WAIT_S):
            return await self.events.get()

    def submit(self, number: int, rows: int = 3) -> None:
        """Lay an echo of `X` out in a slab and hand it over."""
        slab = self.engine.slabs[number % len(self.engine.slabs)]
        slab.view[:rows] = b"\1" * rows
        slab.array(64, X.dtype, X.shape)[...] = X
        parts = [Part("x", Field("f4", (2,)), 64, X.nbytes)]
        self.engine.submit(Job(number, number % len(self.engine.slabs), "echo", rows, parts, b"\x80", 0, 128))

    async def answer(self) -> Done:
        async with asyncio.timeout(WAIT_S):
            return await self.done.get()


@pytest.fixture
async def start_engine() -> AsyncIterator[StartEngine]:
    async with AsyncExitStack() as stack:

        async def start(catalogue: Catalogue | None = None, reserve: bool = False) -> Watched:
            spec = EngineSpec("cpu", 1, 1, catalogue or Catalogue(), LogSettings(level="critical"))
            watched = Watched(ChildEngine(spec, 2, 1 << 16, reserve))
            stack.push_async_callback(watched.engine.stop)
            await watched.engine.start()
            return watched

        yield start


def wait_for_end(pid: int) -> None:
    """Return when a process that is not ours has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    ended = poll.poll(1000 * WAIT_S)
    os.close(fd)
    assert ended, f"process {pid} is still there"


def take_descriptors(taken: list[int]) -> None:
    """Leave none to this process."""
    with suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))


@pytest.mark.usefixtures("without_torch")
class TestChild:
    async def test_batch_is_run_in_another_process(self, start_engine: StartEngine) -> None:
        watched = await start_engine()
        assert await watched.next_event() == "ready"
        assert watched.engine.host.pid not in (0, os.getpid())
        watched.submit(1)
        done = await watched.answer()
        assert (done.id, done.failed, done.errors) == (1, "", [])
        (part,) = done.parts
        np.testing.assert_array_equal(watched.engine.slabs[1].array(part.data, X.dtype, X.shape), X)

    async def test_batches_are_answered_in_order(self, start_engine: StartEngine) -> None:
        watched = await start_engine()
        for number in range(50):
            watched.submit(number)
        assert [(await watched.answer()).id for _ in range(50)] == list(range(50))

    async def test_killed_engine_is_lost_started_again_and_serves(self, start_engine: StartEngine) -> None:
        watched = await start_engine()
        assert await watched.next_event() == "ready"
        first = watched.engine.host.pid
        os.kill(first, signal.SIGKILL)
        assert await watched.next_event() == "lost"
        assert await watched.next_event() == "ready"
        assert watched.engine.host.pid not in (0, first)
        assert watched.engine.host.restarts == 1
        watched.submit(2)
        assert (await watched.answer()).id == 2

    async def test_batch_handed_to_a_dead_engine_is_part_of_its_loss(self, start_engine: StartEngine) -> None:
        watched = await start_engine()
        await watched.next_event()
        os.kill(watched.engine.host.pid, signal.SIGKILL)
        os.waitid(os.P_PID, watched.engine.host.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - the loop must not see it yet
        watched.submit(1)
        assert await watched.next_event() == "lost"
        assert watched.done.empty()

    async def test_engine_that_takes_no_batches_is_given_up_with_what_was_half_sent(
        self, start_engine: StartEngine
    ) -> None:
        watched = await start_engine()
        await watched.next_event()
        first = watched.engine.host.pid
        os.kill(first, signal.SIGSTOP)
        with capture_logs() as logs:
            number = 0
            while not logs:
                watched.submit(number := number + 1)
        watched.submit(number + 1)
        assert watched.events.empty(), "the front is told in a turn of its own"
        assert await watched.next_event() == "lost"
        assert await watched.next_event() == "ready"
        assert watched.engine.host.pid not in (0, first)
        watched.submit(1)
        assert (await watched.answer()).id == 1

    async def test_ctrl_c_does_not_end_it(self, start_engine: StartEngine) -> None:
        """The terminal sends it to the whole group; the front drains first."""
        watched = await start_engine()
        os.kill(watched.engine.host.pid, signal.SIGINT)
        watched.submit(1)
        assert (await watched.answer()).id == 1

    async def test_stop_ends_the_process(self, start_engine: StartEngine) -> None:
        watched = await start_engine()
        pid = watched.engine.host.pid
        await watched.engine.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert watched.engine.host.pid == 0

    async def test_stop_is_bounded_where_the_process_hangs(
        self, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine_process, "STOP_TIMEOUT_S", 0.1)
        watched = await start_engine()
        pid = watched.engine.host.pid
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(WAIT_S):
            await watched.engine.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    async def test_stop_while_it_starts_again_leaves_no_process(
        self, start_engine: StartEngine, capfd: pytest.CaptureFixture[str]
    ) -> None:
        watched = await start_engine()
        await watched.next_event()
        os.kill(watched.engine.host.pid, signal.SIGKILL)
        assert await watched.next_event() == "lost"
        while not watched.engine.host.pid:  # noqa: ASYNC110 - it is this loop that starts it
            await asyncio.sleep(0)
        pid = watched.engine.host.pid
        await watched.engine.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert watched.events.empty()
        assert capfd.readouterr().err == "", "it left in disorder"
        assert asyncio.all_tasks() == {asyncio.current_task()}, "it would be started again"

    async def test_stop_leaves_no_process_of_which_a_device_is_slow_to_let_go(
        self, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def never(process: engine_process.EngineProcess) -> int | None:
            await asyncio.Event().wait()
            return None

        monkeypatch.setattr(engine_process.EngineProcess, "exit_code", never)
        watched = await start_engine()
        await watched.next_event()
        pid = watched.engine.host.pid
        os.kill(pid, signal.SIGKILL)
        assert await watched.next_event() == "lost"
        await asyncio.sleep(0)  # its host waits for it now
        await watched.engine.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    async def test_start_that_is_cancelled_ends_the_process_at_once(
        self, start_engine: StartEngine, tmp_path: Path
    ) -> None:
        endless = tmp_path / "endless.py"
        endless.write_text("import threading\nthreading.Event().wait()\n")
        spec = EngineSpec("cpu", 1, 1, Catalogue(modules=(str(endless),)), LogSettings(level="critical"))
        engine = ChildEngine(spec, 2, 1 << 16)
        starting = asyncio.create_task(engine.start())
        await asyncio.sleep(0)
        pid = engine.host.pid
        starting.cancel()
        # Before the task has had its turn, as when it is the loop that ends.
        async with asyncio.timeout(engine_process.STOP_TIMEOUT_S / 2):
            await engine.stop()
            await asyncio.wait({starting})
        assert starting.cancelled()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    async def test_engine_that_cannot_start_says_so(self, start_engine: StartEngine) -> None:
        with pytest.raises(RuntimeError, match="the cpu engine ended while starting, exit code 1"):
            await start_engine(Catalogue(modules=("no_such_module_of_operations",)))

    async def test_loop_turns_while_a_device_is_slow_to_let_go_of_one_that_did_not_load(
        self, start_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is in reserve loads beside requests that are served."""
        kill, wait = subprocess.Popen.kill, subprocess.Popen.wait
        held_up: list[int] = []

        def kill_slowly(process: subprocess.Popen[bytes]) -> None:
            asyncio.get_running_loop().call_later(0.05, kill, process)

        def wait_seen(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
            if process.poll() is None:
                held_up.append(process.pid)
                kill(process)
            return wait(process, timeout)

        monkeypatch.setattr(subprocess.Popen, "kill", kill_slowly)
        monkeypatch.setattr(subprocess.Popen, "wait", wait_seen)
        mute = tmp_path / "mute.py"
        mute.write_text("import os, sys, threading\nos.close(int(sys.argv[1]))\nthreading.Event().wait()\n")
        with pytest.raises(RuntimeError, match="ended while starting, exit code -9"):
            await start_engine(Catalogue(modules=(str(mute),)))
        assert held_up == []

    async def test_engine_that_is_never_ready_is_given_up(
        self, start_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine_process, "START_TIMEOUT_S", 0.1)
        endless = tmp_path / "endless.py"
        endless.write_text("import threading\nthreading.Event().wait()\n")
        with pytest.raises(RuntimeError, match="not ready within"):
            await start_engine(Catalogue(modules=(str(endless),)))

    async def test_engine_counts_gpus_as_the_driver_does(
        self, start_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
        module = tmp_path / "look.py"
        found = tmp_path / "found"
        module.write_text(
            f"import os, pathlib\npathlib.Path({str(found)!r}).write_text(os.environ['CUDA_DEVICE_ORDER'])"
        )
        await start_engine(Catalogue(modules=(str(module),)))
        assert found.read_text() == "PCI_BUS_ID"

    async def test_restart_outlives_a_system_without_processes_to_give(
        self, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hosts, "RESTART_DELAYS_S", (0.0,))
        watched = await start_engine()
        await watched.next_event()
        gc.collect()  # maps of slabs of other tests hold descriptors
        spawn, open_before = engine_process._spawn, len(os.listdir("/proc/self/fd"))

        def refuse_twice(*arguments: Any) -> subprocess.Popen[bytes]:
            if watched.engine.host.restarts <= 2:
                raise BlockingIOError("no more processes")
            return spawn(*arguments)

        monkeypatch.setattr(engine_process, "_spawn", refuse_twice)
        os.kill(watched.engine.host.pid, signal.SIGKILL)
        assert await watched.next_event() == "lost"
        assert await watched.next_event() == "ready"
        assert watched.engine.host.restarts == 3
        assert len(os.listdir("/proc/self/fd")) <= open_before, "others may have been collected meanwhile"

    async def test_engine_lost_while_no_descriptor_is_left_is_told_of_and_comes_back(
        self, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hosts, "RESTART_DELAYS_S", (0.0, 0.05))
        watched = await start_engine()
        await watched.next_event()
        gc.collect()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
        taken: list[int] = []
        try:
            take_descriptors(taken)
            os.kill(watched.engine.host.pid, signal.SIGKILL)
            while watched.engine.host.pid:  # noqa: ASYNC110 - what the host learns, it tells nobody
                await asyncio.sleep(0)
            take_descriptors(taken)  # what the dead one has set free
            assert await watched.next_event() == "lost"
            assert len(watched.engine.slabs) == watched.engine.slots + 1
            await asyncio.sleep(0.2)
        finally:
            for fd in taken:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert await watched.next_event() == "ready"
        watched.submit(1)
        assert (await watched.answer()).id == 1

    async def test_restart_is_tried_until_it_succeeds(
        self, start_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hosts, "RESTART_DELAYS_S", (0.0,))
        operations = tmp_path / "flaky.py"
        operations.write_text("")
        watched = await start_engine(Catalogue(modules=(str(operations),)))
        await watched.next_event()
        operations.write_text("raise ImportError('not now')")
        os.kill(watched.engine.host.pid, signal.SIGKILL)
        assert await watched.next_event() == "lost"
        while watched.engine.host.restarts < 3:  # noqa: ASYNC110 - the attempts are another process's
            await asyncio.sleep(0.001)
        operations.write_text("")
        assert await watched.next_event() == "ready"
        watched.submit(1)
        assert (await watched.answer()).id == 1


async def in_reserve(host: EngineHost) -> int:
    """The process in reserve, when there is one."""
    async with asyncio.timeout(WAIT_S):
        while not host.reserve_pid:  # noqa: ASYNC110 - it is another process that loads
            await asyncio.sleep(0.001)
    return host.reserve_pid


@pytest.mark.usefixtures("without_torch")
class TestReserve:
    async def test_process_in_reserve_takes_over_and_another_takes_its_place(self, start_engine: StartEngine) -> None:
        watched = await start_engine(reserve=True)
        host = watched.engine.host
        assert await watched.next_event() == "ready"
        for times in (1, 2):
            first, second = host.pid, await in_reserve(host)
            assert first != second
            os.kill(first, signal.SIGKILL)
            assert await watched.next_event() == "lost"
            assert await watched.next_event() == "ready"
            assert (host.pid, watched.engine._pid, host.restarts) == (second, second, times)
            watched.submit(times)
            assert (await watched.answer()).id == times

    async def test_it_hears_no_front_before(self, start_engine: StartEngine) -> None:
        watched = await start_engine(reserve=True)
        await in_reserve(watched.engine.host)
        for _ in range(20):
            link = EngineLink(watched.engine.host.address, "cpu", 1, 1 << 16)
            await link.start()
            assert link._pid == watched.engine.host.pid
            await link.stop()

    async def test_its_death_does_not_touch_the_one_that_serves(
        self, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hosts, "RESTART_DELAYS_S", (0.0,))
        watched = await start_engine(reserve=True)
        host = watched.engine.host
        serving, second = host.pid, await in_reserve(host)
        os.kill(second, signal.SIGKILL)
        while host.reserve_pid:  # noqa: ASYNC110 - it is another process that ends
            await asyncio.sleep(0.001)
        third = await in_reserve(host)
        assert third not in (serving, second)
        assert (host.pid, host.restarts, watched.events.qsize()) == (serving, 0, 1), "it was ready once"
        watched.submit(1)
        assert (await watched.answer()).id == 1

    async def test_one_that_cannot_start_does_not_touch_the_one_that_serves(
        self, start_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operations = tmp_path / "flaky.py"
        operations.write_text("")
        spawn, spawned = engine_process._spawn, 0

        def fails_twice(*arguments: Any) -> subprocess.Popen[bytes]:
            nonlocal spawned
            spawned += 1
            operations.write_text("raise ImportError('not now')" if spawned in (2, 3) else "")
            return spawn(*arguments)

        monkeypatch.setattr(hosts, "RESTART_DELAYS_S", (0.0,))
        monkeypatch.setattr(engine_process, "_spawn", fails_twice)
        watched = await start_engine(Catalogue(modules=(str(operations),)), reserve=True)
        serving = watched.engine.host.pid
        await in_reserve(watched.engine.host)
        assert (spawned, watched.engine.host.pid, watched.engine.host.restarts) == (4, serving, 0)

    async def test_one_that_still_loads_serves_when_it_has(self, start_engine: StartEngine) -> None:
        watched = await start_engine(reserve=True)
        host = watched.engine.host
        assert await watched.next_event() == "ready"
        while host._loading is None:  # noqa: ASYNC110 - it is this loop that starts it
            await asyncio.sleep(0)
        loading = host._loading.pid
        os.kill(host.pid, signal.SIGKILL)
        assert await watched.next_event() == "lost"
        assert await watched.next_event() == "ready"
        assert (host.pid, host.restarts) == (loading, 1)
        assert await in_reserve(host) != loading

    async def test_engine_lost_while_the_start_of_the_reserve_rests_is_started_at_once(
        self, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watched = await start_engine(reserve=True)
        host = watched.engine.host
        assert await watched.next_event() == "ready"
        second = await in_reserve(host)
        monkeypatch.setattr(hosts, "RESTART_DELAYS_S", (0.0, 10 * WAIT_S))
        os.kill(second, signal.SIGKILL)
        while not host._reserve_losses:  # noqa: ASYNC110 - it is another process that ends
            await asyncio.sleep(0.001)
        os.kill(host.pid, signal.SIGKILL)
        assert await watched.next_event() == "lost"
        assert await watched.next_event() == "ready"

    @pytest.mark.parametrize("loaded", [True, False])
    async def test_stop_ends_both(
        self, start_engine: StartEngine, capfd: pytest.CaptureFixture[str], loaded: bool
    ) -> None:
        watched = await start_engine(reserve=True)
        host = watched.engine.host
        while host._loading is None:  # noqa: ASYNC110 - it is this loop that starts it
            await asyncio.sleep(0)
        pids = [host.pid, host._loading.pid]
        if loaded:
            await in_reserve(host)
        await watched.engine.stop()
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        assert (host.pid, host.reserve_pid) == (0, 0)
        assert capfd.readouterr().err == "", "one left in disorder"
        assert asyncio.all_tasks() == {asyncio.current_task()}, "one would be started again"


HELD = """
import pathlib, time
import numpy as np
from aikoryu.gpu.operation import Operation
from aikoryu.gpu.signature import Signature

FOLDER = pathlib.Path({folder!r})

class Together(Operation):
    \"\"\"How many rows ran together; refuses what is negative, and while the file `hold` is there waits.\"\"\"

    name = "test.together"
    signature = Signature({{"x": "i8"}}, {{"x": "i8", "rows": "i8"}})

    def run(self, batch, device):
        (FOLDER / "runs").touch()
        while (FOLDER / "hold").exists():
            time.sleep(0.001)
        for row in np.flatnonzero(batch["x"] < 0).tolist():
            batch.reject(row, "bad_value", f"{{batch['x'][row]}} is negative")
        return {{"x": batch["x"] * 10, "rows": np.full(batch.rows, batch.rows)}}

together = Together()
"""


class Link:
    """A front's connection to an engine, and what it was told."""

    def __init__(self, address: str) -> None:
        self.engine = EngineLink(address, "cpu", 3, 1 << 16)
        self.done: asyncio.Queue[Done] = asyncio.Queue()
        self.events: asyncio.Queue[str] = asyncio.Queue()
        self.engine.on_done = self.done.put_nowait
        self.engine.on_lost = lambda: self.events.put_nowait("lost")
        self.engine.on_ready = lambda: self.events.put_nowait("ready")

    def submit(self, number: int, *values: int) -> None:
        x = np.array(values)
        slab = self.engine.slabs[number]
        slab.view[: len(x)] = b"\1" * len(x)
        slab.array(64, x.dtype, x.shape)[...] = x
        parts = [Part("x", Field("i8"), 64, x.nbytes)]
        slab.stamp(512, 0.0)
        self.engine.submit(Job(number, number, "test.together", len(x), parts, b"\x80", 0, 1024, 512))

    def began(self, number: int) -> float:
        """When a batch of its began."""
        return self.engine.slabs[number].stamped(512)

    async def answer(self) -> tuple[int, list[int], int, list[tuple[int, str, str]]]:
        """A batch's number, its answer, the rows that it ran together with, and its errors."""
        async with asyncio.timeout(WAIT_S):
            done = await self.done.get()
        assert done.failed == ""
        x, rows = (
            self.engine.slabs[done.id].array(part.data, np.dtype("i8"), (part.data_bytes // 8,)) for part in done.parts
        )
        assert len(set(rows.tolist())) == 1
        return done.id, x.tolist(), int(rows[0]), done.errors

    async def next_event(self) -> str:
        async with asyncio.timeout(WAIT_S):
            return await self.events.get()


async def appears(path: Path) -> None:
    async with asyncio.timeout(WAIT_S):
        while not path.exists():  # noqa: ASYNC110 - it is another process that makes it
            await asyncio.sleep(0.001)


@pytest.mark.usefixtures("without_torch")
class TestSeveralFronts:
    """Fronts of one engine; here they share a process, which the engine cannot know."""

    @pytest.fixture
    async def host(self, tmp_path: Path) -> AsyncIterator[EngineHost]:
        module = tmp_path / "together.py"
        module.write_text(HELD.format(folder=str(tmp_path)))
        made = EngineHost(EngineSpec("cpu", 1, 1, Catalogue(modules=(str(module),)), LogSettings(level="critical")))
        await made.start()
        yield made
        await made.stop()

    @pytest.fixture
    async def links(self, host: EngineHost) -> AsyncIterator[tuple[Link, Link]]:
        made = (Link(host.address), Link(host.address))
        for link in made:
            await link.engine.start()
            assert await link.next_event() == "ready"
        yield made
        for link in made:
            await link.engine.stop()

    async def run_together(self, folder: Path, links: tuple[Link, Link], then: Callable[[], None]) -> None:
        """Keep the engine busy with a batch of the first link, do something, and let it go on."""
        (folder / "hold").touch()
        links[0].submit(0, 7)
        await appears(folder / "runs")
        then()
        (folder / "hold").unlink()

    async def test_batches_handed_over_meanwhile_run_as_one(self, links: tuple[Link, Link], tmp_path: Path) -> None:
        first, second = links

        def hand_over() -> None:
            first.submit(1, 1, -2, 3)
            second.submit(2, -4, 5)

        await self.run_together(tmp_path, links, hand_over)
        assert await first.answer() == (0, [70], 1, [])
        assert await first.answer() == (1, [10, -20, 30], 5, [(1, "bad_value", "-2 is negative")])
        assert await second.answer() == (2, [-40, 50], 5, [(0, "bad_value", "-4 is negative")])
        assert first.done.empty()
        assert second.done.empty()

    async def test_front_that_leaves_with_batches_running_and_waiting_costs_nobody_else(
        self, links: tuple[Link, Link], tmp_path: Path
    ) -> None:
        leaving, staying = links
        (tmp_path / "hold").touch()
        leaving.submit(0, 7)
        await appears(tmp_path / "runs")
        leaving.submit(1, 8, 9)
        staying.submit(0, 1)
        await leaving.engine.stop()
        (tmp_path / "hold").unlink()
        number, x, _, errors = await staying.answer()
        assert (number, x, errors) == (0, [10], [])
        staying.submit(1, 2)
        assert await staying.answer() == (1, [20], 1, [])
        assert leaving.done.empty()
        assert staying.events.empty(), "it is the same engine"

    async def test_engine_that_dies_is_lost_to_all_and_comes_back_to_all(
        self, host: EngineHost, links: tuple[Link, Link], tmp_path: Path
    ) -> None:
        await self.run_together(tmp_path, links, lambda: os.kill(host.pid, signal.SIGKILL))
        for link in links:
            assert [await link.next_event(), await link.next_event()] == ["lost", "ready"]
            link.submit(1, 2)
            assert await link.answer() == (1, [20], 1, [])
            assert link.engine.restarts == 1

    async def test_front_whose_batch_waits_sees_that_others_begin(
        self, links: tuple[Link, Link], tmp_path: Path
    ) -> None:
        running, waiting = links
        (tmp_path / "hold").touch()
        before = time.monotonic()
        running.submit(0, 7)
        await appears(tmp_path / "runs")
        after = time.monotonic()
        waiting.submit(1, 1)
        assert before < running.began(0) == waiting.engine.began < after
        assert waiting.began(1) == 0.0
        (tmp_path / "hold").unlink()
        await waiting.answer()
        assert after < waiting.began(1) == running.engine.began

    async def test_front_connects_while_there_is_no_engine(self, host: EngineHost, links: tuple[Link, Link]) -> None:
        os.kill(host.pid, signal.SIGKILL)
        assert await links[0].next_event() == "lost"
        late = Link(host.address)
        await late.engine.start()
        late.submit(0, 1)
        assert await late.answer() == (0, [10], 1, [])
        await late.engine.stop()

    async def test_garbage_costs_nobody_else(self, host: EngineHost, links: tuple[Link, Link]) -> None:
        broken, fine = links
        pid = host.pid
        assert broken.engine._control is not None
        broken.engine._control.sock.sendall(b"\1\0\0\0\xc1")
        assert [await broken.next_event(), await broken.next_event()] == ["lost", "ready"]
        for link in links:
            link.submit(0, 1)
            assert await link.answer() == (0, [10], 1, [])
        assert fine.events.empty()
        assert host.pid == pid

    async def test_nobody_keeps_an_engine_there(self) -> None:
        link = Link("\0aikoryu-test-nobody")
        with pytest.raises(ConnectionRefusedError):
            await link.engine.start()
        await link.engine.stop()


DEADLY = """
import os, signal
from aikoryu.gpu.operation import operation

@operation("test.deadly", inputs={"x": "f4"}, outputs={"x": "f4"})
def deadly(x):
    os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_operation_that_kills_the_engine_costs_its_own_rows(tmp_path: Path) -> None:
    deadly = tmp_path / "deadly.py"
    deadly.write_text(DEADLY)
    settings = Settings(
        models=ModelSettings(embed=()),
        worker=WorkerSettings(operations=(str(deadly),)),
        cpu=CpuSettings(threads=1),
        batch=BatchSettings(max_bytes=1 << 20),
        log=LogSettings(level="critical"),
    )
    bus = MemoryBus()
    worker = Worker(bus.connect("_WORKER"), settings)
    await worker.start()
    client = Client(bus.connect(), Subjects(), timeout_s=WAIT_S, frame_bytes=1 << 16)
    await client.start()
    try:
        a = np.arange(9, dtype=np.float32).reshape(3, 3)
        np.testing.assert_allclose((await client.call("matrix.matmul", {"a": a, "b": a}))["c"], a @ a)
        with pytest.raises(EngineLost):
            await client.call("test.deadly", {"x": np.float32(1)})
        np.testing.assert_allclose((await client.call("matrix.matmul", {"a": a, "b": a}))["c"], a @ a)
    finally:
        await client.close()
        assert await worker.stop()


FRONT = """
import asyncio, sys
import numpy as np
from aikoryu.bus.client import Client
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.subjects import Subjects
from aikoryu.config import LogSettings, ModelSettings, Settings, configure_logging
from aikoryu.gpu.worker import Worker

async def main():
    configure_logging(LogSettings(level="critical"))
    bus = MemoryBus()
    settings = Settings(models=ModelSettings(embed=()), log=LogSettings(level="critical"))
    worker = Worker(bus.connect("_WORKER"), settings)
    await worker.start()
    client = Client(bus.connect(), Subjects(), timeout_s=60, frame_bytes=65536)
    await client.start()
    a = np.eye(2, dtype=np.float32)
    answer = await client.call("matrix.add", {"a": a, "b": a})
    assert answer["c"].tolist() == [[2, 0], [0, 2]]
    loaded = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "cupy"})
    print(worker._engines[0].host.pid, *loaded, flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def front() -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    """A process that runs a worker with its engine process: it, the engine's pid, and which GPU libraries it loaded."""
    command = [sys.executable, "-c", textwrap.dedent(FRONT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid, *loaded = process.stdout.readline().split()
        yield process, int(pid), loaded
        process.kill()


def test_front_never_loads_torch(front: tuple[subprocess.Popen[str], int, list[str]]) -> None:
    _, _, loaded = front
    assert loaded == []


def test_engine_ends_with_its_front(front: tuple[subprocess.Popen[str], int, list[str]]) -> None:
    process, pid, _ = front
    os.kill(pid, 0)
    process.kill()
    process.wait()
    wait_for_end(pid)


def test_spec_survives_the_command_line() -> None:
    spec = EngineSpec("cpu", 3, 2, Catalogue(("m",), "/models", ("a.py",)), LogSettings(level="debug"))
    assert msgspec.json.decode(msgspec.json.encode(spec), type=EngineSpec) == spec
