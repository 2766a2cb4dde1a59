"""`aikoryu up` and `aikoryu worker`: what they print, how they start, how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from aikoryu.cli import main
from aikoryu.cli.serving import UNANSWERED

from .conftest import WAIT_S, Command, Start, eventually

BLOCKING = '''
import os, pathlib, time
import aikoryu

FOLDER = pathlib.Path({folder!r})

@aikoryu.operation("blocking.wait", inputs={{"x": "f4"}}, outputs={{"x": "f4"}})
def wait(x):
    """Answers when the file `go` is there."""
    (FOLDER / "engine").write_text(str(os.getpid()))
    while not (FOLDER / "go").exists():
        time.sleep(0.01)
    return {{"x": x}}
'''


def blocked(start: Start, up: str, folder: Path, *settings: str) -> tuple[Command, Command]:
    """A worker that runs a call, and the call."""
    file = folder / "blocking.py"
    file.write_text(BLOCKING.format(folder=str(folder)))
    here = ("--nats", up, "--set", f"bus.namespace={folder.name}")
    worker = start("worker", "--operations", str(file), "--set", "models.embed=", *here, *settings)
    worker.hear(r"Worker .* serves \d+ operations on nats://")
    call = start("call", "blocking.wait", "x=1.5", *here)
    eventually((folder / "engine").exists, "the call runs")
    return worker, call


def test_interrupt_answers_what_was_accepted(start: Start, up: str, tmp_path: Path) -> None:
    worker, call = blocked(start, up, tmp_path)
    worker.interrupt()
    worker.hear("Stopping when what was accepted is answered")
    assert worker.process.poll() is None
    (tmp_path / "go").touch()
    assert (call.end(), json.loads(call.words)) == (0, {"x": 1.5})
    assert worker.end() == 0
    assert worker.processes() == []


def test_second_interrupt_ends_at_once(start: Start, up: str, tmp_path: Path) -> None:
    worker, _ = blocked(start, up, tmp_path)
    worker.interrupt()
    worker.hear("Stopping")
    worker.interrupt()
    assert worker.end() == 130
    assert "Traceback" not in worker.words
    engine = int((tmp_path / "engine").read_text())
    eventually(lambda: not os.path.exists(f"/proc/{engine}"), "the engine ends")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_a_worker_whose_words_nobody_reads(up: str, number: int) -> None:
    arguments = ("worker", "--nats", up, "--set", "models.embed=")
    with subprocess.Popen([sys.executable, "-m", "aikoryu.cli", *arguments], stdout=PIPE, stderr=PIPE) as worker:
        try:
            assert worker.stdout is not None
            assert worker.stderr is not None
            assert b"serves" in worker.stdout.readline()
            assert b"Ctrl-C" in worker.stdout.readline()
            worker.stdout.close()
            worker.stderr.close()
            worker.send_signal(number)
            assert worker.wait(WAIT_S) == 0
        finally:
            worker.kill()


def test_up_tells_what_to_type_next(up: str, capsys: pytest.CaptureFixture[str]) -> None:
    # The fixture has heard the first lines; what they told to type works.
    assert main(["ls", "--nats", up]) == 0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError: division by zero ("),
        ("def", "SyntaxError"),
    ],
)
def test_operations_that_cannot_be_loaded(
    up: str, content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"own_{abs(hash(content))}.py"
    file.write_text(content)
    assert main(["worker", "--nats", up, "--operations", str(file)]) == 1
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err


def test_missing_file_of_operations(up: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "--nats", up, "--operations", "/no/such.py"]) == 1
    assert "/no/such.py: no such file of operations" in capsys.readouterr().err


def test_file_without_operations_is_told(start: Start, up: str, tmp_path: Path) -> None:
    file = tmp_path / "empty.py"
    file.write_text("import aikoryu\n")
    own = ("--operations", "examples/own_operation.py", "--operations", str(file))
    worker = start("worker", "--nats", up, "--set", "models.embed=", *own)
    worker.hear("Worker .* serves")
    assert re.findall("No operations in (.*):", worker.words) == [str(file)]


def test_taken_port_of_up(up: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--set", f"server.port={up.rpartition(':')[2]}"]) == 1
    assert "is taken: stop what listens there" in capsys.readouterr().err


def test_call_that_is_left_unanswered_has_a_status_of_its_own(start: Start, up: str, tmp_path: Path) -> None:
    worker, _ = blocked(start, up, tmp_path, "--set", "worker.drain_s=0")
    worker.process.send_signal(signal.SIGTERM)
    worker.hear("frames still held at the end of the drain")
    (tmp_path / "go").touch()  # its engine would be waited for
    assert worker.end() == UNANSWERED == 3


def test_server_that_cannot_be_reached(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "--nats", "nats://127.0.0.1:1"]) == 1
    assert "cannot connect to" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["torch", "prometheus_client"])
def test_what_a_worker_needs_and_is_not_installed(
    up: str, missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["worker", "--nats", up]) == 1
    assert f"aikoryu: a worker needs {missing}: pip install 'aikoryu[worker]'\n" in capsys.readouterr().err


def test_setting_that_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "--set", "worker.metrics_host=a b"]) == 2
    assert "worker.metrics_host" in capsys.readouterr().err


def test_server_of_up_that_is_killed_comes_back_to_its_worker(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").mkdir()
    up = start("up", "--set", "server.port=0", "--set", "models.embed=", "--set", f"server.store_dir={tmp_path}/store")
    url = up.hear(r"is up: NATS at (\S+),")[1]
    up.hear(f"Jobs, their results and context graphs are in {tmp_path}/store")
    (server,) = (pid for pid in up.processes() if b"nats.conf" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(server, signal.SIGKILL)
    told = ("nats-server lost", "nats-server restarted", "connection restored")  # the last two in either order
    eventually(lambda: all(words in up.words for words in told), "server and worker are there again")
    assert main(["call", "echo", "x=1.5", "--nats", url]) == 0
    assert json.loads(capsys.readouterr().out) == {"x": 1.5}
    up.interrupt()
    assert up.end() == 0, up.words
    assert up.processes() == []


def test_systemd_is_told_what_it_asks_for(
    start: Start, up: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(WAIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        worker = start("worker", "--nats", up, "--set", "models.embed=")
        while "READY=1" not in heard:  # the socket holds no more than ten: others wait, and then are lost
            heard.append(systemd.recv(1000).decode())
        worker.process.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in heard:
            heard.append(systemd.recv(1000).decode())
    assert worker.end() == 0
    assert set(heard) == {"WATCHDOG=1", "READY=1", "STOPPING=1"}


def test_interrupt_while_it_starts(start: Start, up: str) -> None:
    worker = start("worker", "--nats", up, "--set", "models.embed=")
    worker.hear("Starting a worker")
    worker.interrupt()
    assert worker.end() in (130, -2)  # -2: before it had taken the signal over
    assert "Traceback" not in worker.words
