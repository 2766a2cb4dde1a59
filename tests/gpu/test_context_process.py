"""The keeper process by itself, over a real server; what keeps graphs in it is a stand-in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import LogSettings, NatsSettings, ServerSettings, Settings
from aikoryu.gpu.child_process import ChildProcess
from aikoryu.gpu.context_host import EXIT_DEVICE_LOST, MODULE, KeeperSpec

WAIT_S = 30.0
# What lies in its folder decides: `refuses` that it cannot start, `lost` how its device is lost once it serves or,
# `lost-late`, while it stops; `undone` that it cannot hand over all. A thread hangs from when the device is lost.
KEEPERS = """
import asyncio, pathlib, sys, threading, types

HERE = pathlib.Path(__file__).parent

class Keepers:
    def __init__(self, transport, settings, device, worker, on_loaded):
        self.failed = asyncio.get_running_loop().create_future()
        self.transport = transport
        (HERE / "made").write_text(f"{device} {worker} {transport.inbox_prefix} {'torch' in sys.modules}")

    async def start(self):
        from aikoryu.bus.errors import ConnectionFailed
        if (HERE / "refuses").exists():
            raise ConnectionFailed("this user may not")
        self.looking = asyncio.create_task(self.look("lost"))

    async def stop(self):
        if (HERE / "lost-late").exists():
            await self.look("lost-late")
            await asyncio.Event().wait()
        await self.transport.flush()
        (HERE / "stopped").touch()
        return not (HERE / "undone").exists()

    async def look(self, name):
        from aikoryu.gpu.device import DeviceLost
        while not (HERE / name).exists():
            await asyncio.sleep(0.005)
        asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
        self.failed.set_exception({"device": DeviceLost, "defect": ZeroDivisionError}[(HERE / name).read_text()]("so"))

sys.modules["aikoryu.gpu.context.keepers"] = module = types.ModuleType("keepers")
module.Keepers = Keepers
"""

# Stands in for the real one, which takes seconds to load; `hangs` is there as long as the device does not answer.
TORCH = """
import pathlib, time

HERE = pathlib.Path(__file__).parent

class Tensor:
    def sum(self):
        return self

    def item(self):
        (HERE / "tried").touch()
        while (HERE / "hangs").exists():
            time.sleep(0.005)

def ones(count, device):
    return Tensor()

def device(name):
    return name

def set_num_threads(count):
    pass

def set_grad_enabled(value):
    pass
"""

Start = Callable[..., Awaitable[ChildProcess]]


@pytest.fixture
async def spec() -> AsyncIterator[KeeperSpec]:
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        settings = Settings(nats=NatsSettings(url=server.url), log=LogSettings(format="json"))
        yield KeeperSpec(settings, "cpu", "w1-context-1")


@pytest.fixture
async def start(spec: KeeperSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    (tmp_path / "sitecustomize.py").write_text(KEEPERS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    async with AsyncExitStack() as stack:

        async def started(given: KeeperSpec = spec) -> ChildProcess:
            process = await ChildProcess.start(MODULE, given, "the keeper", start_within_s=WAIT_S, end_within_s=WAIT_S)
            stack.push_async_callback(process.kill)
            return process

        yield started


async def test_it_serves_until_it_is_told_to_end(start: Start, tmp_path: Path) -> None:
    process = await start()
    device, worker, inbox, has_torch = (tmp_path / "made").read_text().split()
    assert (device, worker, has_torch) == ("cpu", "w1-context-1", "False")
    assert inbox.startswith("_INBOX.keepers."), "apart from that of the worker"
    assert await process.end() == 0
    assert (tmp_path / "stopped").exists()


async def test_it_says_what_it_could_not_hand_over(start: Start, tmp_path: Path) -> None:
    (tmp_path / "undone").touch()
    assert await (await start()).end() == 1


@pytest.mark.parametrize("while_it_stops", [False, True])
async def test_with_its_device_it_ends_at_once(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str], while_it_stops: bool
) -> None:
    (tmp_path / ("lost-late" if while_it_stops else "lost")).write_text("device")
    process = await start()
    async with asyncio.timeout(WAIT_S):
        assert await (process.end() if while_it_stops else process.ended()) == EXIT_DEVICE_LOST
    assert not (tmp_path / "stopped").exists()
    assert '"event": "device lost"' in capfd.readouterr().err


async def test_after_a_defect_it_ends_with_its_traceback(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lost").write_text("defect")
    assert await (await start()).ended() == 3
    assert "ZeroDivisionError" in capfd.readouterr().err


async def test_why_it_cannot_start_is_said(
    start: Start, spec: KeeperSpec, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nowhere = replace(spec.settings, nats=NatsSettings(url="nats://127.0.0.1:1"))
    with pytest.raises(RuntimeError, match="the keeper ended while starting, exit code 2"):
        await start(msgspec.structs.replace(spec, settings=nowhere))
    assert "Error: " in capfd.readouterr().err
    (tmp_path / "refuses").touch()
    with pytest.raises(RuntimeError, match="exit code 2"):
        await start()
    assert "Error: this user may not" in capfd.readouterr().err


async def test_a_device_that_failed_is_tried_before_it_serves(
    start: Start, spec: KeeperSpec, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tries = msgspec.structs.replace(spec, tries_device=True)
    (tmp_path / "torch.py").write_text(TORCH)
    process = await start(tries)
    assert (tmp_path / "tried").exists()
    assert await process.end() == 0
    (tmp_path / "made").unlink()
    (tmp_path / "torch.py").write_text("raise OSError('no driver')")
    with pytest.raises(RuntimeError, match="exit code 2"):
        await start(tries)
    assert "Error: cpu does not compute: no driver" in capfd.readouterr().err
    assert not (tmp_path / "made").exists()


async def test_a_device_that_hangs_when_it_is_tried_does_not_hold_up_the_end(
    start: Start, spec: KeeperSpec, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    (tmp_path / "hangs").touch()
    starting = asyncio.ensure_future(start(msgspec.structs.replace(spec, tries_device=True)))
    async with asyncio.timeout(WAIT_S / 2):
        while not (tmp_path / "tried").exists():  # noqa: ASYNC110 - it is another process that tries
            await asyncio.sleep(0.005)
        starting.cancel()
        await asyncio.wait({starting})
    assert starting.cancelled()
