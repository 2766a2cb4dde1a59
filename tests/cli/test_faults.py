"""`aikoryu faults` against workers that obey, one that does not, and none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.fault_control import FaultControl
from aikoryu.bus.faults import Rule
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.server import EmbeddedServer
from aikoryu.bus.subjects import Subjects
from aikoryu.cli import main
from aikoryu.config import FaultSettings, ServerSettings

from .conftest import Start


@asynccontextmanager
async def listening(url: str, name: str, settings: FaultSettings) -> AsyncIterator[list[str]]:
    """A worker as far as faults go; the kinds it was told last."""
    told: list[str] = []

    def apply(order: str, rules: list[Rule]) -> None:
        told[:] = [rule.kind for rule in rules]

    connection = await NatsConnection.open(ConnectOptions(url))
    control = FaultControl(connection, Subjects(), name, settings, lambda reply: True, apply, dict)
    await control.start()
    await connection.flush()
    yield told
    await control.stop()
    await connection.close()


async def test_every_worker_says_what_is_in_force(start: Start) -> None:
    on = FaultSettings(enabled=True)
    async with (
        EmbeddedServer(ServerSettings(port=0)) as server,
        listening(server.url, "w1", on) as first,
        listening(server.url, "w2", on) as second,
    ):
        for arguments, expected, kinds in (
            (["raise:0.01", "drop@3"], "raise:0.01 drop@3", ["raise", "drop"]),
            (["--off"], "none", []),
        ):
            command = start("faults", *arguments, "--nats", server.url)
            status = await asyncio.to_thread(command.end)
            assert status == 0, command.words
            assert command.words.splitlines() == ["WORKER  FAULTS", f"w1      {expected}", f"w2      {expected}"]
            assert first == second == kinds


async def test_worker_that_refuses_is_a_failure(start: Start) -> None:
    async with (
        EmbeddedServer(ServerSettings(port=0)) as server,
        listening(server.url, "w1", FaultSettings()) as told,
    ):
        command = start("faults", "raise:1", "--nats", server.url)
        assert await asyncio.to_thread(command.end) == 1
        assert "w1      refused: faults are off on this worker: set faults.enabled=true" in command.words
        assert told == []


async def test_nobody_there_is_a_failure(start: Start) -> None:
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        command = start("faults", "--off", "--nats", server.url)
        assert await asyncio.to_thread(command.end) == 1
        assert f"aikoryu: no worker answers on {server.url}: start one" in command.words


def test_worker_of_a_user_refuses(up: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "die:1", "--nats", up]) == 1
    assert "refused: faults are off on this worker" in capsys.readouterr().out
    assert main(["call", "echo", "x=1", "--nats", up]) == 0


def test_rule_that_is_none_is_told(up: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "rise:1", "--nats", up]) == 1
    assert "aikoryu: fault 'rise:1': there is no 'rise', use one of raise, " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["raise:1", "--off"]])
def test_either_rules_or_off(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["faults", *arguments])
    assert "RULE" in capsys.readouterr().err
