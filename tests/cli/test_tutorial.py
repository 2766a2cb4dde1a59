"""docs/tutorial.md, followed from its first line to its last: files written, commands typed, answers compared."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from aikoryu.cli import main

from .conftest import ROOT, WAIT_S

TEXT = (ROOT / "docs/tutorial.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`(\w+\.(?:py|env|service))`")
PYTHON = [sys.executable, "-W", "error"]


def blocks() -> Iterator[tuple[str, str, str]]:
    """The kind of each block, the file that the words above it named last, and what it holds."""
    end = 0
    for block in BLOCK.finditer(TEXT):
        named = FILE.findall(TEXT[end : block.start()])
        yield block[1], named[-1] if named else "", block[2]
        end = block.end()


class Reader:
    """Does what the tutorial says, in a folder of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stack: ExitStack) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self._stack = stack
        self.agents: list[subprocess.Popen[str]] = []

    def type(self, command: str) -> str:
        """What a command prints, on either stream."""
        words = shlex.split(command)
        if words[0] == "cd":
            self._monkeypatch.chdir(words[1])
        elif words[-1] == "&":
            self._start(words[1])
        elif words[0] == "aikoryu":
            main(words[1:])
        else:
            module = ["-m", "pytest", "-p", "no:asyncio", "-p", "no:cacheprovider"] if words[0] == "pytest" else []
            done = subprocess.run([*PYTHON, *module, *words[1:]], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout.rpartition("[100%]\n")[2]
        return "".join(self._capsys.readouterr())

    def _start(self, program: str) -> None:
        """Start an agent, which ends with the test."""
        agent = self._stack.enter_context(subprocess.Popen([*PYTHON, program], stderr=subprocess.PIPE, text=True))
        self._stack.callback(agent.terminate)
        self.agents.append(agent)
        assert agent.stderr is not None
        assert "agents ready" in agent.stderr.readline()


def test_tutorial_from_its_first_line_to_its_last(
    up: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIKORYU_NATS_URL", up)
    monkeypatch.chdir(tmp_path)
    typed = 0
    with ExitStack() as stack:
        reader = Reader(monkeypatch, capsys, stack)
        for kind, file, content in blocks():
            if kind in ("python", "ini"):
                Path(file).write_text(content, "utf-8")
            elif kind == "console":
                for command, shown in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", content, re.MULTILINE):
                    said = reader.type(command)
                    assert without_load(said).startswith(without_load(shown).rstrip("\n")), command
                    typed += 1
        for agent in reader.agents:
            agent.terminate()  # all at once, which is quicker than one after the other
        assert {agent.wait(WAIT_S) for agent in reader.agents} == {0}
    assert typed == TEXT.count("\n$ ") > 0
    assert {path.name for path in (tmp_path / "scout/auth").iterdir()} >= {"nats-server.conf", "scout.seed", "ada.seed"}


def without_load(words: str) -> str:
    """Calls that just ended may count yet."""
    return re.sub(r" [01]\.\d\d  ", " 0.00  ", words)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_unit_is_one(tmp_path: Path) -> None:
    unit = next(content for _, file, content in blocks() if file == "scout.service")
    (tmp_path / "scout.service").write_text(unit.replace("/opt/scout/bin/python", sys.executable), "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "scout.service")], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
