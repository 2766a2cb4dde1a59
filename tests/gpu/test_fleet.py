"""A fleet: fronts that share an engine, each a process, over a real server."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aikoryu.agents import Bus, connect
from aikoryu.bus.errors import BusError, NoWorker
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import (
    BatchSettings,
    BusSettings,
    ContextSettings,
    CpuSettings,
    LogSettings,
    ModelSettings,
    NatsSettings,
    ResidentSettings,
    ServerSettings,
    Settings,
    WorkerSettings,
)
from aikoryu.gpu import context_host
from aikoryu.gpu import fleet as fleets
from aikoryu.gpu.engines import spare_specs
from aikoryu.gpu.fleet import EngineAddress, Fleet, FrontSpec

pytestmark = pytest.mark.usefixtures("without_torch")

WAIT_S = 30.0
OPERATIONS = """
import os, pathlib, time
import numpy as np
from aikoryu.gpu.operation import Operation
from aikoryu.gpu.signature import Signature

print("ready, says a module, at length:", "." * 300_000)
HERE = pathlib.Path(__file__).parent

class Who(Operation):
    \"\"\"The process that ran it; while the file `hold` is there it waits.\"\"\"

    name = "test.who"
    signature = Signature({"x": "i8"}, {"pid": "i8"})

    def run(self, batch, device):
        (HERE / "runs").touch()
        while (HERE / "hold").exists():
            time.sleep(0.001)
        return {"pid": np.full(batch.rows, os.getpid())}

who = Who()
"""

# It says of itself that it has three graphs.
KEEPER = """
import sys
sys.stdin.readline()
print("ready", flush=True)
print('{"device": "cpu", "graphs": 3, "told": []}', flush=True)
sys.stdin.read()
"""

Start = Callable[..., Awaitable[Fleet]]


@pytest.fixture
async def settings(tmp_path: Path) -> AsyncIterator[Settings]:
    module = tmp_path / "who.py"
    module.write_text(OPERATIONS)
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        yield Settings(
            nats=NatsSettings(url=server.url),
            bus=BusSettings(timeout_s=2.0),
            batch=BatchSettings(max_bytes=1 << 20),
            cpu=CpuSettings(threads=1),
            context=ContextSettings(enabled=False),
            worker=WorkerSettings(device="cpu", fronts=2, operations=(str(module),), drain_s=5.0),
            residents=ResidentSettings(directory=str(tmp_path)),
            models=ModelSettings(embed=()),
            log=LogSettings(level="critical"),
        )


@pytest.fixture
async def start(settings: Settings) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def started(given: Settings = settings) -> Fleet:
            fleet = Fleet(given)
            stack.push_async_callback(fleet.stop)
            await fleet.start()
            return fleet

        yield started
    assert children() == []


@pytest.fixture
async def bus(settings: Settings) -> AsyncIterator[Bus]:
    async with connect(settings=settings) as connected:
        yield connected


def children() -> list[str]:
    """What the engines and fronts that this process started are called."""
    found = []
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        found += [word.decode() for word in words if word.startswith(b"aikoryu.gpu.")]
    return found


def free_pair() -> int:
    """A port that is free, as is the next."""
    while True:
        with socket.socket() as first, socket.socket() as second, suppress(OSError, OverflowError):
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            second.bind(("127.0.0.1", port + 1))
            return port


def front_pids(fleet: Fleet) -> dict[int, int]:
    return {number: process.pid for number, process in fleet._processes.items()}


async def answered(bus: Bus) -> int:
    """Call until it is answered, as an agent would; the engine's process."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return int((await bus.call("test.who", {"x": 1}))["pid"])
            except BusError as error:
                if error.code not in ("expired", "engine_lost", "busy", "no_worker"):
                    raise


async def requests(bus: Bus) -> dict[str, int]:
    """Frames that each worker has had of the operation, by its name."""
    found: dict[str, int] = {}
    for worker in await bus.workers(0.1):
        endpoints: Any = worker["endpoints"]
        found[str(worker["id"])] = sum(each["num_requests"] for each in endpoints if each["name"] == "test-who")
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - it is other processes that change it
            await asyncio.sleep(0.005)


async def test_fronts_share_the_engine(start: Start, bus: Bus) -> None:
    fleet = await start()
    pids = [await answered(bus) for _ in range(40)]
    assert set(pids) == {fleet._hosts[0].pid}
    found = await requests(bus)
    assert len(found) == 2
    assert min(found.values()) > 0
    assert sum(found.values()) == 40
    assert sorted(children()) == ["aikoryu.gpu.child", *["aikoryu.gpu.front_process"] * 2]
    assert await fleet.stop()
    assert children() == []


async def test_front_that_is_killed_comes_back(start: Start, bus: Bus) -> None:
    fleet = await start()
    before = set(await requests(bus))
    first = front_pids(fleet)
    os.kill(first[0], signal.SIGKILL)
    engine = {await answered(bus) for _ in range(10)}
    await until(lambda: front_pids(fleet).get(0, first[0]) != first[0])
    after = set(await requests(bus))
    assert (len(after), len(before & after)) == (2, 1)
    assert engine == {await answered(bus)} == {fleet._hosts[0].pid}, "the engine had nothing to do with it"
    assert front_pids(fleet)[1] == first[1]
    assert await fleet.stop(), "what was lost with the front is not left unanswered now"


async def test_engine_that_is_killed_comes_back_to_the_fronts(start: Start, bus: Bus) -> None:
    fleet = await start()
    fronts = front_pids(fleet)
    before = await answered(bus)
    os.kill(before, signal.SIGKILL)
    after = {await answered(bus) for _ in range(20)}
    assert after == {fleet._hosts[0].pid}
    assert before not in after
    assert front_pids(fleet) == fronts


async def test_stop_answers_what_was_accepted(start: Start, bus: Bus, tmp_path: Path) -> None:
    fleet = await start()
    (tmp_path / "hold").touch()
    calls = [bus.call("test.who", {"x": 1}, timeout_s=WAIT_S)]
    await until((tmp_path / "runs").exists)
    for _ in range(10):
        calls.append(bus.call("test.who", {"x": 1}, timeout_s=WAIT_S))
        await asyncio.sleep(0)
    await bus.workers(0.1)  # on the same connection: what came before it has arrived
    stopping = asyncio.create_task(fleet.stop())
    await asyncio.sleep(0.05)
    assert not stopping.done()
    (tmp_path / "hold").unlink()
    assert await stopping
    assert len({int(answer["pid"]) for answer in await asyncio.gather(*calls)}) == 1


async def test_stop_says_what_was_left_unanswered(start: Start, settings: Settings, bus: Bus, tmp_path: Path) -> None:
    fleet = await start(replace(settings, worker=replace(settings.worker, drain_s=0.0)))
    (tmp_path / "hold").touch()
    call = bus.call("test.who", {"x": 1}, timeout_s=WAIT_S)
    await until((tmp_path / "runs").exists)
    stopping = asyncio.create_task(fleet.stop())
    with pytest.raises(NoWorker):  # busy it was told at first, and asked again
        await call
    (tmp_path / "hold").unlink()
    assert not await stopping


async def test_stop_that_is_given_up_leaves_no_process(start: Start, bus: Bus, tmp_path: Path) -> None:
    fleet = await start()
    (tmp_path / "hold").touch()
    call = bus.call("test.who", {"x": 1})
    await until((tmp_path / "runs").exists)
    stopping = asyncio.create_task(fleet.stop())
    await asyncio.sleep(0.05)
    (tmp_path / "hold").unlink()
    stopping.cancel()
    await asyncio.wait({stopping})
    assert stopping.cancelled()
    assert children() == []
    call.cancel()


async def test_stop_while_a_front_comes_back_leaves_no_process(start: Start) -> None:
    others = asyncio.all_tasks()
    fleet = await start()
    os.kill(fleet._processes[0].pid, signal.SIGKILL)
    await until(lambda: 0 not in fleet._processes and children().count("aikoryu.gpu.front_process") == 2)
    assert await fleet.stop()
    assert children() == []
    assert asyncio.all_tasks() == others, "it would be started again"


@pytest.mark.parametrize("process", ["aikoryu.gpu.child", "aikoryu.gpu.front_process"])
async def test_start_that_is_cancelled_leaves_no_process(settings: Settings, process: str) -> None:
    fleet = Fleet(settings)
    starting = asyncio.create_task(fleet.start())
    await until(lambda: process in children())
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert children() == []


async def test_front_that_cannot_start_ends_the_others(
    settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gc.collect()  # maps of slabs of other tests hold descriptors
    open_before = len(os.listdir("/proc/self/fd"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fleet = Fleet(replace(settings, worker=replace(settings.worker, metrics_port=port)))
        with pytest.raises(RuntimeError, match="front 0 ended while starting, exit code 2"):
            await fleet.start()
    assert children() == []
    assert f"Error: worker.metrics_port {port}: Address already in use: set another one" in capfd.readouterr().err
    assert [path.name for path in tmp_path.glob("aikoryu-*/*")] == [], "the folder of the engine's files is gone"
    assert len(os.listdir("/proc/self/fd")) == open_before


async def test_front_that_never_serves_is_given_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "FRONT_TIMEOUT_S", 0.05)
    with pytest.raises(RuntimeError, match=r"front \d did not serve within"):
        await Fleet(settings).start()
    assert children() == []


async def test_system_without_processes_to_give(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError("no more processes")

    fleet = Fleet(settings)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    with pytest.raises(RuntimeError, match="cannot be started: no more processes"):
        await fleet.start()
    assert children() == []


async def test_front_is_tried_until_it_starts(
    start: Start, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fleet = await start()
    monkeypatch.setattr(fleets, "RESTART_DELAYS_S", (0.0,))
    spec, tries = fleet._specs[0], 0
    fleet._specs[0] = FrontSpec(spec.settings, (EngineAddress("\0aikoryu-test-nobody", "cpu", 2),))
    os.kill(fleet._processes[0].pid, signal.SIGKILL)

    def refused() -> bool:
        nonlocal tries
        tries += capfd.readouterr().err.count("Error: an engine is gone")
        return tries >= 2

    await until(refused)
    fleet._specs[0] = spec
    await until(lambda: 0 in fleet._processes)


async def test_every_front_has_a_name_and_a_port_of_its_own(settings: Settings) -> None:
    fleet = Fleet(replace(settings, worker=replace(settings.worker, name="w", metrics_port=9100, fronts=3)))
    worker = [spec.settings.worker for spec in fleet._specs]
    assert [(each.name, each.metrics_port) for each in worker] == [("w-0", 9100), ("w-1", 9101), ("w-2", 9102)]
    await fleet.stop()


async def test_every_front_tells_of_the_graphs(
    start: Start, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_keeper.py").write_text(KEEPER)
    monkeypatch.setattr(context_host, "MODULE", "test_keeper")
    monkeypatch.setattr(fleets, "TELL_S", 0.05)
    port = free_pair()
    worker = replace(settings.worker, metrics_port=port)
    fleet = await start(replace(settings, worker=worker, context=ContextSettings()))

    def told(front: int) -> set[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port + front}/metrics") as response:
            lines: list[str] = response.read().decode().splitlines()
        return {line for line in lines if line.startswith("aikoryu_context_")}

    async def until_told(front: int) -> None:
        expected = {f'aikoryu_context_{name}{{device="cpu"}} {n}.0' for name, n in (("keeper_up", 1), ("graphs", 3))}
        async with asyncio.timeout(WAIT_S):
            while not await asyncio.to_thread(told, front) >= expected:  # noqa: ASYNC110 - it is asked
                await asyncio.sleep(0.02)

    await until_told(0)
    await until_told(1)
    os.kill(fleet._processes[1].pid, signal.SIGKILL)
    await until(lambda: 1 not in fleet._processes)
    await until(lambda: 1 in fleet._processes)
    await until_told(1)


async def test_fronts_are_dealt_to_the_devices(settings: Settings) -> None:
    devices = "cuda:0,cuda:1"
    fleet = Fleet(replace(settings, worker=replace(settings.worker, device=devices, fronts=3)))
    addresses = [host.address for host in fleet._hosts]
    first, second = EngineAddress(addresses[0], "cuda:0", 3), EngineAddress(addresses[1], "cuda:1", 3)
    spare = EngineAddress(addresses[2], "cpu", 2)
    assert [spec.engines for spec in fleet._specs] == [(first, spare), (second, spare), (first, spare)]
    await fleet.stop()


async def test_cpu_behind_the_cpu_has_a_name_of_its_own(settings: Settings) -> None:
    fleet = Fleet(replace(settings, worker=replace(settings.worker, spare="cpu")))
    device, spare = (host.address for host in fleet._hosts)
    engines = EngineAddress(device, "cpu", 2), EngineAddress(spare, "cpu-spare", 2)
    assert [spec.engines for spec in fleet._specs] == [engines] * 2
    await fleet.stop()


async def test_devices_have_a_reserve_and_the_spare_has_none(settings: Settings) -> None:
    fleet = Fleet(replace(settings, worker=replace(settings.worker, device="cuda:0,cuda:1", reserve=True)))
    assert [host._wants_reserve for host in fleet._hosts] == [True, True, False]
    await fleet.stop()


async def test_reserve_takes_over_for_every_front(start: Start, settings: Settings, bus: Bus) -> None:
    fleet = await start(replace(settings, worker=replace(settings.worker, reserve=True)))
    (host,) = fleet._hosts
    await until(lambda: host.reserve_pid != 0)
    first, second = host.pid, host.reserve_pid
    os.kill(first, signal.SIGKILL)
    after = {await answered(bus) for _ in range(20)}
    assert after == {second}
    assert host.pid == second


async def test_fleet_keeps_graphs_in_a_process_of_their_own(
    start: Start, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = "import sys\nsys.stdin.readline()\nprint('ready', flush=True)\nsys.exit(len(sys.stdin.read()) + {})"
    (tmp_path / "test_keeper.py").write_text(stand_in.format(0))
    monkeypatch.setattr(context_host, "MODULE", "test_keeper")
    given = replace(settings, context=ContextSettings(), worker=replace(settings.worker, fronts=1))
    fleet = await start(given)
    (context,) = fleet._contexts
    assert context.device == "cpu"
    assert os.path.exists(f"/proc/{context.pid}")
    assert await fleet.stop()
    assert context.pid == 0
    (tmp_path / "test_keeper.py").write_text(stand_in.format(1))
    assert not await (await start(given)).stop(), "it left something undone"


async def test_fleet_whose_keeper_does_not_start_serves(
    start: Start, settings: Settings, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_host, "MODULE", "aikoryu.nothing")
    fleet = await start(replace(settings, context=ContextSettings(), worker=replace(settings.worker, fronts=1)))
    assert await answered(bus) == fleet._hosts[0].pid
    assert await fleet.stop()


@pytest.mark.parametrize(
    ("device", "spare", "names"),
    [
        ("cuda:0", "auto", ["cpu"]),
        ("cuda:0", "cpu", ["cpu"]),
        ("cuda:0", "none", []),
        ("cpu", "auto", []),
        ("cpu", "cpu", ["cpu-spare"]),
        ("cpu", "none", []),
    ],
)
def test_what_stands_behind_a_device(settings: Settings, device: str, spare: Any, names: list[str]) -> None:
    given = replace(settings, worker=replace(settings.worker, device=device, spare=spare))
    specs = spare_specs(given, None)
    assert [spec.called for spec in specs] == names
    assert {spec.device for spec in specs} <= {"cpu"}


async def test_engine_that_dies_with_a_batch_costs_its_caller_nothing(
    start: Start, settings: Settings, bus: Bus, tmp_path: Path
) -> None:
    fleet = await start(replace(settings, worker=replace(settings.worker, spare="cpu")))
    (tmp_path / "hold").touch()
    call = bus.call("test.who", {"x": 1}, timeout_s=WAIT_S)
    await until((tmp_path / "runs").exists)
    device, spare = (host.pid for host in fleet._hosts)
    os.kill(device, signal.SIGKILL)
    (tmp_path / "hold").unlink()
    assert (await call)["pid"] == spare
