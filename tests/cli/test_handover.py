"""A rolling restart: workers are ended with SIGTERM and started again under load, and no caller notices."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from aikoryu.agents import Bus, connect
from aikoryu.config import BusSettings, Settings

from .conftest import Command, Start

CALLERS = 8
MARKING = """
import pathlib
import aikoryu

FILE = pathlib.Path({folder!r}) / "runs"

@aikoryu.operation("rolling.mark", inputs={{"x": "utf8"}}, outputs={{"x": "utf8"}})
def mark(x):
    with FILE.open("a") as file:
        file.writelines(f"{{each}}\\n" for each in x)
    return {{"x": x}}
"""


@pytest.fixture(autouse=True)
def _without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines start as on a machine without torch, which is much faster; these operations do not need it."""
    (tmp_path / "torch.py").write_text("raise ImportError('not on this machine')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


async def call_until(bus: Bus, ended: asyncio.Event, number: int) -> list[str]:
    """Call one after the other, every second caller's calls may be sent again; what was asked and answered."""
    asked: list[str] = []
    while not ended.is_set():
        asked.append(f"{number}-{len(asked)}")
        answer = await bus.call("rolling.mark", {"x": asked[-1]}, idempotent=number % 2 == 0)
        assert answer["x"] == asked[-1]
        await asyncio.sleep(0.001)
    return asked


async def test_no_call_fails_or_is_run_twice_in_a_rolling_restart(start: Start, up: str, tmp_path: Path) -> None:
    file = tmp_path / "marking.py"
    file.write_text(MARKING.format(folder=str(tmp_path)))
    lean = ("--operations", str(file), "--device", "cpu", "--set", "models.embed=", "--set", "batch.max_bytes=65536")
    here = ("--nats", up, "--set", f"bus.namespace={tmp_path.name}")

    def begin(fronts: int) -> Command:
        worker = start("worker", *lean, *here, "--fronts", str(fronts))
        worker.hear("Worker .* serves")
        return worker

    def terminate(worker: Command) -> None:
        worker.process.send_signal(signal.SIGTERM)
        assert worker.end() == 0, worker.words

    ended = asyncio.Event()
    async with connect(up, settings=Settings(bus=BusSettings(namespace=tmp_path.name))) as bus:
        one, fleet = await asyncio.gather(*(asyncio.to_thread(begin, fronts) for fronts in (1, 2)))
        callers = [asyncio.create_task(call_until(bus, ended, number)) for number in range(CALLERS)]
        await asyncio.to_thread(terminate, one)
        await asyncio.to_thread(begin, 1)
        await asyncio.to_thread(terminate, fleet)
        ended.set()
        asked = [each for caller in await asyncio.gather(*callers) for each in caller]
    assert len(asked) > 100
    assert Counter((tmp_path / "runs").read_text().split()) == Counter(asked), "each was run, and once"
