"""What systemd is told, and when nothing is."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from aikoryu.cli.systemd import tell, watched


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's socket, of either kind."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@aikoryu-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0"))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listening


def heard(manager: socket.socket) -> list[str]:
    """What came since."""
    words = []
    while True:
        try:
            words.append(manager.recv(1000).decode())
        except BlockingIOError:
            return words


def test_state_is_told(manager: socket.socket) -> None:
    tell("READY=1")
    assert heard(manager) == ["READY=1"]


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "/no/such/socket"])
def test_nobody_is_told_where_nobody_listens(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    tell("READY=1")


async def test_watchdog_hears_of_a_loop_that_turns(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    words: list[str] = []
    with watched():
        async with asyncio.timeout(5):
            while len(words) < 3:
                await asyncio.sleep(0)
                words += heard(manager)
    assert set(words) == {"WATCHDOG=1"}
    await asyncio.sleep(0.01)
    assert heard(manager) == []


@pytest.mark.parametrize(("name", "value"), [("WATCHDOG_PID", "1"), ("WATCHDOG_USEC", ""), ("WATCHDOG_USEC", "0")])
async def test_watchdog_that_waits_for_nothing_of_ours_hears_nothing(
    name: str, value: str, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    monkeypatch.setenv(name, value)
    with watched():
        await asyncio.sleep(0.01)
    assert heard(manager) == []
