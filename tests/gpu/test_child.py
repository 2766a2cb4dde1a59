"""The engine's loop: what it takes while batches run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aikoryu.config import LogSettings
from aikoryu.gpu.child import _serve
from aikoryu.gpu.engine import EngineSpec
from aikoryu.gpu.host import ChildEngine
from aikoryu.gpu.job import Done, Job
from aikoryu.gpu.registry import Catalogue


class Front:
    """Is answered."""

    def answer(self, done: Done) -> None:
        pass


class Engine:
    """An intake and an executor whose batches end when the script says so.

    Args:
        waiting: batches that wait, by number; negative ones are to run alone.
        ends: the number of batches that have ended, at each look of the engine at its sockets.
    """

    def __init__(self, waiting: list[int], ends: list[int]) -> None:
        self._waiting = waiting
        self._ends = ends
        self._running: list[int] = []
        self.told: list[list[int]] = []

    @property
    def ended(self) -> bool:
        self.told.append(list(self._running))
        for _ in range(self._ends.pop(0) if self._ends else 0):
            self._running.pop(0)
        return not self._ends

    def take(self, wait: bool) -> list[Any]:
        if not self._waiting or (self._waiting[0] < 0 and not wait):
            return []
        number = self._waiting.pop(0)
        job = Job(number, 0, "echo", 1, [], b"", 0, 0, alone=number < 0)
        return [SimpleNamespace(front=Front(), job=job, piece=number)]

    def start(self, pieces: list[int], stream: int) -> Any:
        (number,) = pieces
        self._running.append(number)
        return SimpleNamespace(done=lambda: number not in self._running, wait=lambda: [Done(number, [], [], 0)])

    def report(self, figures: dict[str, float]) -> None:
        pass


def test_batches_run_beside_each_other_as_far_as_there_are_streams() -> None:
    engine: Any = Engine([1, 2, 3], [0, 0, 0, 1, 0, 0])
    _serve(engine, engine, 2, [])
    assert engine.told == [[], [1], [1, 2], [1, 2], [2], [2, 3]]


def test_nothing_runs_beside_a_batch_that_is_to_run_alone() -> None:
    engine: Any = Engine([1, -2, 3], [0, 0, 1, 0, 0, 1, 0, 0])
    _serve(engine, engine, 3, [])
    assert engine.told == [[], [1], [1], [], [-2], [-2], [], [3]]


async def test_device_that_is_refused_is_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    engine = ChildEngine(EngineSpec("cuda:99", 1, 1, Catalogue(), LogSettings()), 2, 1 << 16)
    with pytest.raises(RuntimeError, match="the cuda:99 engine ended while starting, exit code 1"):
        await engine.start()
    await engine.stop()
    told = capfd.readouterr().err
    assert told.startswith("Error: ")
    assert "Traceback" not in told
