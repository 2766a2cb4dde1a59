"""`aikoryu ls` against a running worker, and against none."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from aikoryu.bus.server import EmbeddedServer
from aikoryu.bus.subjects import Subjects
from aikoryu.cli import main
from aikoryu.cli.ls import _ago, _breakers, operations_of
from aikoryu.config import ServerSettings

from .conftest import Start


def test_table_shows_operations_and_statistics_in_100_columns(
    up: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["call", "demo.scale", "x=1", "--nats", up]) == 0
    capsys.readouterr()
    assert main(["ls", "--nats", up]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split() == ["WORKER", "VERSION", "ENGINE", "UP"]
    assert "matrix.matmul  (a: T[*,i?,k], b: T[*,k,j?]) -> (c: T[*,i?,j?])" in lines
    at = lines.index("demo.scale  (x: T[...]) -> (y: T[...])")
    assert lines[at + 1 : at + 4] == ["    Each row's x times factor.", "    parameters: factor", "    T: f4 f8"]
    (scale,) = (line.split() for line in lines[at + 4 :] if line.startswith("demo.scale "))
    workers, frames, errors, rows, batches = map(int, scale[1:6])
    assert workers == 1
    assert frames >= rows == batches >= 1
    assert errors <= frames


def test_json_is_what_the_workers_tell(up: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--json", "--nats", up]) == 0
    (worker,) = json.loads(capsys.readouterr().out)
    assert worker["name"] == "aikoryu"
    assert "aikoryu.v1.default.matrix.add" in [endpoint["subject"] for endpoint in worker["endpoints"]]


async def test_no_worker_is_a_failure_that_says_what_to_start(start: Start) -> None:
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        command = start("ls", "--nats", server.url)
        command.hear(r"no worker answers on .*: start one with `aikoryu up`")
        assert command.end() == 1


def endpoint(namespace: str, engine: str, rows: int, breaker: str = "closed") -> dict[str, object]:
    data = {"engine": engine, "batches": 2, "rows": rows, "largest_batch": rows - 1}
    fallback = {"spare_rows": 0 if breaker == "closed" else rows, "breaker": breaker}
    subject = f"aikoryu.v1.{namespace}.echo"
    counts = {"num_requests": 3, "num_errors": 1, "processing_time": 10}
    return {"subject": subject, "metadata": {}, "data": data | fallback, **counts}


def test_breakers_that_are_not_closed_are_told_of() -> None:
    states = ("closed", "open", "half_open", "open")
    workers = [{"endpoints": [endpoint("here", "cuda:0", 1000, state)]} for state in states]
    (echo,) = operations_of(workers, Subjects("aikoryu", "here"))
    assert (echo.kept_off, echo.spare_rows) == (3, 3000)
    lines = [line.split("  ") for line in _breakers([echo]).splitlines()]
    assert [[cell.strip() for cell in line if cell] for line in lines] == [
        ["BREAKERS", "OPEN", "HALF OPEN", "ROWS ON SPARE"],
        ["echo", "2", "1", "3,000"],
    ]
    (well,) = operations_of(workers[:1], Subjects("aikoryu", "here"))
    assert not well.kept_off


def test_figures_are_summed_over_workers_of_the_namespace() -> None:
    workers = [
        {"endpoints": [endpoint("here", "cpu", 5)]},
        {"endpoints": [endpoint("here", "cuda0", 7), endpoint("there", "cpu", 9)]},
    ]
    (echo,) = operations_of(workers, Subjects("aikoryu", "here"))
    assert (echo.workers, echo.frames, echo.errors, echo.batches, echo.rows, echo.largest) == (2, 6, 2, 4, 12, 6)
    assert (echo.processing_ns, echo.engines) == (20, {"cpu", "cuda0"})


@pytest.mark.parametrize(("hours", "told"), [(3, "3 h"), (0, "0 s"), (-3, "0 s")])
def test_worker_was_started_in_the_past_whatever_the_clocks_say(hours: int, told: str) -> None:
    assert _ago(datetime.now(UTC) - timedelta(hours=hours)) == told
