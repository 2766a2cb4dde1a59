"""`--fronts`: one command, several processes, one end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from aikoryu.cli import main

from .conftest import Start, eventually

LEAN = ("--fronts", "2", "--device", "cpu", "--set", "models.embed=", "--set", "batch.max_bytes=65536")

BLOCKING = """
import pathlib, time
import aikoryu

FOLDER = pathlib.Path({folder!r})

@aikoryu.operation("blocking.wait", inputs={{"x": "utf8"}}, outputs={{"x": "utf8"}})
def wait(x):
    (FOLDER / "engine").touch()
    while not (FOLDER / "go").exists():
        time.sleep(0.01)
    return {{"x": x}}
"""


@pytest.fixture(autouse=True)
def _without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines start as on a machine without torch, which is much faster; echo does not need it."""
    (tmp_path / "torch.py").write_text("raise ImportError('not on this machine')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


def test_up_serves_through_all_its_fronts_and_leaves_none(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    up = start("up", *LEAN, "--set", "server.port=0")
    url = up.hear(r"is up: NATS at (\S+),")[1]
    assert main(["call", "echo", "x=1.5", "--nats", url]) == 0
    assert json.loads(capsys.readouterr().out) == {"x": 1.5}
    assert main(["ls", "--nats", url]) == 0
    assert len(re.findall(r"^\S+ +\S+ +cpu ", capsys.readouterr().out, re.M)) == 2
    assert len(up.processes()) == 6, "itself, the server, the engine, the keeper of graphs and the fronts"
    up.process.send_signal(signal.SIGTERM)
    assert up.end() == 0
    assert up.processes() == []
    assert "Traceback" not in up.words
    assert "Warning" not in up.words


def test_killed_processes_come_back(start: Start, up: str, tmp_path: Path) -> None:
    here = ("--nats", up, "--set", f"bus.namespace={tmp_path.name}")
    worker = start("worker", *LEAN, *here)
    worker.hear("Worker of 2 fronts on cpu serves")
    before = set(worker.processes())
    for pid in before - {worker.process.pid}:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(set(worker.processes()) - before) == 4, "all are started again")
    worker.hear("front restarted")
    worker.hear("front restarted")
    assert main(["call", "echo", "x=1.5", *here]) == 0
    worker.interrupt()
    assert worker.end() == 0
    assert worker.processes() == []


@pytest.mark.parametrize("heard", [True, False], ids=["after the first", "with the first"])
def test_second_signal_ends_all_at_once(start: Start, up: str, tmp_path: Path, heard: bool) -> None:
    file = tmp_path / "blocking.py"
    file.write_text(BLOCKING.format(folder=str(tmp_path)))
    here = ("--nats", up, "--set", f"bus.namespace={tmp_path.name}")
    worker = start("worker", *LEAN, *here, "--operations", str(file))
    worker.hear("serves")
    start("call", "blocking.wait", "x=a", *here)
    eventually((tmp_path / "engine").exists, "the call runs")
    worker.interrupt()
    if heard:
        worker.hear("Stopping")
    worker.process.send_signal(signal.SIGTERM)  # two of one signal may arrive as one
    eventually(lambda: len(worker.processes()) <= 2, "the fronts end")
    (tmp_path / "go").touch()
    assert worker.end() == 130
    assert worker.processes() == []
    assert "Traceback" not in worker.words


def test_front_that_cannot_start_fails_the_command_with_a_sentence(start: Start, up: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = start("worker", *LEAN, "--nats", up, "--set", f"worker.metrics_port={port}")
        assert worker.end() == 1
    assert f"Error: worker.metrics_port {port}: Address already in use: set another one\n" in worker.words
    assert "front 0 ended while starting, exit code 2; its log is above" in worker.words
    assert "Traceback" not in worker.words
    assert worker.processes() == []
