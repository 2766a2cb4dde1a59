"""The command line as a whole: help that teaches, errors in a sentence, light imports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from aikoryu.bus.errors import ServerFailed
from aikoryu.cli import COMMANDS, main
from aikoryu.config import describe


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and stdout of a command that exits by itself."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return int(exit_.value.code or 0), capsys.readouterr().out


def names() -> list[str]:
    return [command.__name__.rpartition(".")[2] for command in COMMANDS]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = printed(capsys, "--help")
    assert status == 0
    assert names()[:7] == ["up", "worker", "call", "ls", "agents", "new", "packets"]
    assert names()[7:] == ["context", "record", "replay", "demo", "doctor", "auth", "faults", "bench"]
    assert [name for name in names() if f"\n  aikoryu {name}" not in text] == []


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "start here:" in err


@pytest.mark.parametrize("name", names())
def test_help_of_a_command_has_examples_and_fits_a_terminal(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, text = printed(capsys, name, "--help")
    assert status == 0
    assert f"  aikoryu {name}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_settings_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = printed(capsys, "--settings")
    assert status == 0
    keys = [line.split(" =")[0] for line in text.splitlines() if not line.startswith(" ")]
    assert keys == [key for key, *_ in describe()]
    assert "models.embed = all-MiniLM-L6-v2\n" in text


def test_wrong_setting_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--set", "cpu.threads=many"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("aikoryu: cpu.threads = 'many', from the command line, is not allowed: give a whole number")


def test_wrong_file_of_settings_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[cpu]\nthread = 2\n")
    assert main(["ls", "--config", str(file)]) == 2
    assert "cpu.thread, from the file" in capsys.readouterr().err


def test_set_without_a_value_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "ls", "--set", "cpu.threads")[0] == 2


def test_failure_is_one_sentence_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--nats", "nats://127.0.0.1:1"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("aikoryu: cannot connect to nats://127.0.0.1:1")


def test_missing_server_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise ServerFailed("no nats-server: install it")

    monkeypatch.setattr("aikoryu.bus.server.find_server", missing)
    assert main(["up", "--set", "server.port=0"]) == 1
    assert capsys.readouterr().err.endswith("aikoryu: no nats-server: install it\n")


def test_interrupt_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(main: Coroutine[Any, Any, int]) -> int:
        main.close()
        raise KeyboardInterrupt

    monkeypatch.setattr("uvloop.run", interrupted)
    assert main(["up"]) == 130


def test_help_loads_no_worker() -> None:
    code = (
        "import sys, aikoryu.cli\n"
        "try: aikoryu.cli.main(['--help'])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "aikoryu.cli.demo" in loaded
    assert loaded & {"torch", "cupy", "prometheus_client", "pynvml", "tokenizers", "aikoryu.gpu.worker"} == set()


def test_closed_output_is_no_traceback(up: str) -> None:
    command = [sys.executable, "-m", "aikoryu.cli", "ls", "--nats", up]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1
