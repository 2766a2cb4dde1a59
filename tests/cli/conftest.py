"""A running `aikoryu up`, commands as processes that end with their test, and what none of them may leave behind."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
MARK = "TEST_MARK"


class Command:
    """A process of the command line, its words read while it runs.

    Attributes:
        mark: what the environment of it and of all its processes holds.
    """

    def __init__(self, *arguments: str, folder: Path, cwd: Path = ROOT) -> None:
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "aikoryu.cli", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, MARK: self.mark, "TMPDIR": str(folder)},  # a killed server leaves its folder behind
        )
        self.heard: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=[stream], daemon=True)
            for stream in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def hear(self, pattern: str) -> re.Match[str]:
        """The next line that matches, of either stream."""
        until = time.monotonic() + WAIT_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{pattern!r} was not among:\n{''.join(self.heard)}") from None
            if match := re.search(pattern, line):
                return match

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Its exit status, all it said being in `heard`."""
        status = self.process.wait(WAIT_S)
        for reader in self._readers:
            reader.join(WAIT_S)
        return status

    @property
    def words(self) -> str:
        """All it has said."""
        return "".join(self.heard)

    def processes(self) -> list[int]:
        """Processes of it that are there, itself among them, and those it started, and so on."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                # A process that has ended and is not waited for has an empty environment.
                if f"{MARK}={self.mark}".encode() in (path / "environ").read_bytes():
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def close(self) -> None:
        """End it and whatever it started."""
        self.process.kill()
        self.end()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.heard.append(line)
            self._lines.put(line)


Start = Callable[..., Command]


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition of another process holds."""
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {WAIT_S:.0f} s"
        time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command; it ends with the test."""
    commands: list[Command] = []

    def begin(*arguments: str, cwd: Path = ROOT) -> Command:
        commands.append(Command(*arguments, folder=tmp_path, cwd=cwd))
        return commands[-1]

    yield begin
    for command in commands:
        command.close()


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an `aikoryu up` that also has the operation of `examples/`."""
    arguments = ("up", "--set", "server.port=0", "--operations", "examples/own_operation.py")
    command = Command(*arguments, folder=tmp_path_factory.mktemp("up"))
    try:
        url = command.hear(r"is up: NATS at (\S+),")[1]
        command.hear("In another terminal")
        yield url
        command.interrupt()
        assert command.end() == 0, command.words
        assert command.processes() == []
    finally:
        command.close()
