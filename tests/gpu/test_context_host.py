"""The context host, with processes that stand in for keepers and say what they are told."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from aikoryu.config import ContextSettings, LogSettings, Settings, WorkerSettings
from aikoryu.gpu import context_host as module
from aikoryu.gpu.context_figures import HostFigures, KeeperFigures
from aikoryu.gpu.context_host import ContextHost

WAIT_S = 30.0
# What it finds in its folder decides: `fails-<device>` the exit code instead of `ready`, `hangs-<device>` neither yet,
# `holds-<device>` that it does not end yet when it is asked to, `code-<device>` the code it ends with then.
KEEPER = """
import json, os, pathlib, select, signal, sys, time

HERE = pathlib.Path(__file__).parent
spec = json.loads(sys.stdin.readline())
device = spec["device"]

def say(what):
    with open(HERE / "said", "a") as said:
        said.write(f"{what} {device}\\n")

signal.signal(signal.SIGUSR1, lambda *_: os._exit(75))
say("tries" if spec["tries_device"] else "starts")
(HERE / "environment").write_text(os.environ["CUDA_DEVICE_ORDER"] + " " + os.environ["OMP_NUM_THREADS"])
with open(HERE / "workers", "a") as workers:
    workers.write(spec["worker"] + "\\n")
while (HERE / f"hangs-{device}").exists():
    if select.select([sys.stdin], [], [], 0.005)[0]:
        sys.exit(0)
if (fails := HERE / f"fails-{device}").exists():
    sys.exit(int(fails.read_text()))
say("serves")
print("ready", flush=True)
print(json.dumps({"device": device, "graphs": 1, "told": []}), flush=True)
sys.stdin.read()
while (HERE / f"holds-{device}").exists():
    time.sleep(0.005)
say("ends")
sys.exit(int((HERE / f"code-{device}").read_text()) if (HERE / f"code-{device}").exists() else 0)
"""

Start = Callable[..., Awaitable[ContextHost]]


@pytest.fixture(autouse=True)
def _keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_keeper.py").write_text(KEEPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(module, "MODULE", "test_keeper")
    monkeypatch.setattr(module, "RESTART_DELAYS_S", (0.0,))


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def started(device: str = "cpu", retry_device_s: float = 0.01) -> ContextHost:
            host = made(device, retry_device_s)
            stack.push_async_callback(host.stop)
            await host.start()
            return host

        yield started
    assert children() == []


def made(device: str, retry_device_s: float = 0.01) -> ContextHost:
    settings = Settings(
        context=ContextSettings(retry_device_s=retry_device_s),
        worker=WorkerSettings(name="w1", drain_s=5.0),
        log=LogSettings(level="critical"),
    )
    return ContextHost(settings, device)


def children() -> list[int]:
    """The stand-ins that this process started and that have not ended."""
    pids = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    return [pid for pid in pids if b"test_keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def said(folder: Path) -> list[str]:
    path = folder / "said"
    return path.read_text().splitlines() if path.exists() else []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - it is other processes that change it
            await asyncio.sleep(0.005)


async def test_a_keeper_serves_until_the_stop(start: Start, tmp_path: Path) -> None:
    host = await start()
    assert children() == [host.pid]
    assert await host.stop()
    assert said(tmp_path) == ["starts cpu", "serves cpu", "ends cpu"]
    assert (host.pid, children()) == (0, [])
    assert await host.stop()
    order, threads = (tmp_path / "environment").read_text().split()
    assert order == "PCI_BUS_ID"
    assert int(threads) >= 1


async def test_a_keeper_that_leaves_something_undone_is_told(start: Start, tmp_path: Path) -> None:
    (tmp_path / "code-cpu").write_text("1")
    host = await start()
    assert not await host.stop()


async def test_a_keeper_that_is_killed_comes_back(start: Start, tmp_path: Path) -> None:
    host = await start("cuda:0")
    first = host.pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: host.pid not in (0, first))
    assert said(tmp_path) == ["starts cuda:0", "serves cuda:0"] * 2
    assert (tmp_path / "workers").read_text().split() == ["w1-context-1", "w1-context-2"], "none answers for another"


async def lose(host: ContextHost, folder: Path) -> int:
    """Have the device be lost, and hang when it is tried; the process on the CPU that keeps graphs then."""
    first = host.pid
    (folder / "hangs-cuda:0").touch()
    os.kill(first, signal.SIGUSR1)
    await until(lambda: host.pid not in (0, first))
    assert host.device == "cpu"
    return host.pid


async def test_a_lost_device_has_the_cpu_keep_graphs_until_it_computes(start: Start, tmp_path: Path) -> None:
    host = await start("cuda:0")
    on_cpu = await lose(host, tmp_path)
    await until(lambda: "tries cuda:0" in said(tmp_path))
    assert len(children()) == 2
    (tmp_path / "holds-cpu").touch()
    (tmp_path / "hangs-cuda:0").unlink()
    await until(lambda: host.pid != on_cpu)
    assert host.device == "cuda:0"
    assert on_cpu in children(), "it hands over yet"
    (tmp_path / "holds-cpu").unlink()
    await until(lambda: children() == [host.pid])
    assert said(tmp_path)[:2] == ["starts cuda:0", "serves cuda:0"]
    assert sorted(said(tmp_path)[2:5]) == ["serves cpu", "starts cpu", "tries cuda:0"]
    assert said(tmp_path)[5:] == ["serves cuda:0", "ends cpu"]
    await lose(host, tmp_path)
    (tmp_path / "hangs-cuda:0").unlink()
    await until(lambda: host.device == "cuda:0")


async def test_what_keepers_tell_is_known_until_they_have_ended(start: Start, tmp_path: Path) -> None:
    host = await start("cuda:0")
    gpu, cpu = (KeeperFigures(device, 1, []) for device in ("cuda:0", "cpu"))
    await until(lambda: host.figures == HostFigures({"cuda:0": True}, [gpu]))
    (tmp_path / "hangs-cpu").touch()
    (tmp_path / "hangs-cuda:0").touch()
    os.kill(host.pid, signal.SIGUSR1)
    await until(lambda: host.device == "cpu")
    assert host.figures == HostFigures({"cuda:0": False, "cpu": False}, [])
    (tmp_path / "hangs-cpu").unlink()
    await until(lambda: host.figures == HostFigures({"cuda:0": False, "cpu": True}, [cpu]))
    (tmp_path / "holds-cpu").touch()
    (tmp_path / "hangs-cuda:0").unlink()
    await until(lambda: host.figures == HostFigures({"cuda:0": True}, [cpu, gpu]))
    (tmp_path / "holds-cpu").unlink()
    await until(lambda: host.figures == HostFigures({"cuda:0": True}, [gpu]))
    await host.stop()
    assert host.figures == HostFigures({"cuda:0": False}, [])


async def test_a_device_that_does_not_compute_leaves_the_cpu_in_charge(start: Start, tmp_path: Path) -> None:
    host = await start("cuda:0")
    (tmp_path / "fails-cuda:0").write_text("2")
    os.kill(host.pid, signal.SIGUSR1)
    await until(lambda: said(tmp_path).count("tries cuda:0") >= 3 and host.pid != 0)
    on_cpu = host.pid
    assert host.device == "cpu"
    assert said(tmp_path).count("starts cpu") == 1
    os.kill(on_cpu, signal.SIGKILL)
    await until(lambda: host.pid not in (0, on_cpu))
    assert host.device == "cpu"


async def test_a_lost_cpu_is_the_cpu_again(start: Start, tmp_path: Path) -> None:
    host = await start()
    first = host.pid
    os.kill(first, signal.SIGUSR1)
    await until(lambda: host.pid not in (0, first))
    assert await host.stop()
    assert said(tmp_path) == ["starts cpu", "serves cpu"] * 2 + ["ends cpu"]


async def test_a_device_that_comes_back_first_ends_the_cpus_late_start(start: Start, tmp_path: Path) -> None:
    host = await start("cuda:0")
    (tmp_path / "hangs-cpu").touch()
    first = host.pid
    os.kill(first, signal.SIGUSR1)
    await until(lambda: host.device == "cuda:0" and host.pid not in (0, first))
    (tmp_path / "hangs-cpu").unlink()
    await until(lambda: "ends cpu" in said(tmp_path) and children() == [host.pid])
    assert host.device == "cuda:0"


async def test_a_keeper_that_cannot_start_is_tried_again(start: Start, tmp_path: Path) -> None:
    (tmp_path / "fails-cpu").write_text("2")
    host = await start()
    assert host.pid == 0
    await until(lambda: said(tmp_path).count("starts cpu") >= 3)
    assert not host.pid
    (tmp_path / "fails-cpu").unlink()
    await until(lambda: host.pid != 0)


async def test_a_keeper_that_does_not_end_is_killed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_SLACK_S", -4.95)
    (tmp_path / "holds-cpu").touch()
    host = await start()
    assert not await host.stop()
    assert children() == []


async def test_a_stop_waits_for_graphs_that_are_handed_over(start: Start, tmp_path: Path) -> None:
    host = await start("cuda:0")
    await lose(host, tmp_path)
    (tmp_path / "holds-cpu").touch()
    (tmp_path / "hangs-cuda:0").unlink()
    await until(lambda: host.device == "cuda:0")
    stopping = asyncio.create_task(host.stop())
    await until(lambda: said(tmp_path)[-1] == "ends cuda:0")
    assert not stopping.done()
    (tmp_path / "holds-cpu").unlink()
    assert await stopping
    assert said(tmp_path)[-1] == "ends cpu"


async def test_a_stop_that_is_given_up_leaves_no_process(start: Start, tmp_path: Path) -> None:
    (tmp_path / "holds-cpu").touch()
    host = await start()
    stopping = asyncio.create_task(host.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait({stopping})
    assert stopping.cancelled()
    assert children() == []


async def test_a_stop_while_a_keeper_starts_leaves_no_process(start: Start, tmp_path: Path) -> None:
    others = asyncio.all_tasks()
    host = await start("cuda:0")
    for device in ("cpu", "cuda:0"):
        (tmp_path / f"hangs-{device}").touch()
    os.kill(host.pid, signal.SIGUSR1)
    await until(lambda: {"tries cuda:0", "starts cpu"} <= set(said(tmp_path)))
    assert await host.stop()
    assert children() == []
    assert asyncio.all_tasks() == others, "it would be started again"


async def test_a_stop_lets_what_it_cancels_come_to_its_end(start: Start) -> None:
    """As of the second keeper, which is not wanted any more and ends just then."""
    host = await start()
    ended = False

    async def end() -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)
            ended = True

    host._spawn(end())
    await asyncio.sleep(0)
    assert await host.stop()
    assert ended


async def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "hangs-cpu").touch()
    host = made("cpu")
    starting = asyncio.create_task(host.start())
    await until(lambda: said(tmp_path) != [])
    starting.cancel()
    await asyncio.wait({starting})
    assert children() == []
