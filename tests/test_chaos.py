"""Faults of every kind under half of the load that is possible: each call gets its one right answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aikoryu.cli.chaos import report
from aikoryu.cli.chaos.drill import drill
from aikoryu.cli.chaos.faults import FAULTS, Fault
from aikoryu.config import load
from aikoryu.gpu.nvml import visible

CALLS = 100_000
ENGINES = ("raise", "memory", "wrong", "slow", "hang", "poison", "die", "kill engine")
MESSAGES = ("drop", "delay", "duplicate", "reorder", "disconnect")
OTHERS = ("kill fronts", "stall", "cut", "kill server")


def named(*names: str) -> list[Fault]:
    return [fault for fault in FAULTS if fault.name in names]


@pytest.mark.parametrize(
    "faults", [named(*ENGINES), named(*MESSAGES), named(*OTHERS)], ids=("engines", "messages", "others")
)
async def test_no_call_is_lost_or_answered_wrongly_or_twice(faults: Sequence[Fault]) -> None:
    settings = load(flags={"log.level": "critical", "worker.device": "cpu"})
    done = await drill(settings, faults, CALLS, processes=1)
    assert report.well(done.outcomes), f"\n{report.figures(done.outcomes)}\n\n{report.verdict(done.outcomes)}"
    assert all(outcome.account.calls >= CALLS for outcome in done.outcomes)


@pytest.mark.gpu
async def test_real_faults_of_a_gpu_lose_no_call() -> None:
    if not visible():
        pytest.skip("needs a GPU")
    settings = load(flags={"log.level": "critical", "worker.device": "cuda:0"})
    done = await drill(settings, named(*ENGINES), CALLS, processes=1)
    assert report.well(done.outcomes), f"\n{report.figures(done.outcomes)}\n\n{report.verdict(done.outcomes)}"


def test_every_fault_is_tried() -> None:
    assert {fault.name for fault in FAULTS} == {*ENGINES, *MESSAGES, *OTHERS}
