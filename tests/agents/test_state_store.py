"""States on a server: they outlive it and whoever wrote them, and nothing of an earlier owner gets in."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import aikoryu as ai
from aikoryu.agents import keyed_asking, state_store
from aikoryu.agents.bus import Bus, session
from aikoryu.agents.state_store import Found, JetStreamStates, Lease, token_of
from aikoryu.bus import connection as connection_module
from aikoryu.bus.bucket import Overtaken
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.leases import LeaseLost
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.subjects import Subjects
from aikoryu.config import BusSettings, NatsSettings

from .conftest import until
from .keyed import ONE, Counter, process
from .lasting_server import Server

MOVES = 100
CALLERS = 8
MEMBER = Path(__file__).parent / "keyed_member.py"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are short, and lost connections come back soon."""
    monkeypatch.setattr(state_store, "TTL_S", 1)
    monkeypatch.setattr(connection_module, "RETRY_LONGEST_S", 0.05)
    monkeypatch.setattr(keyed_asking, "SOONEST_S", 0.002)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(tmp_path / "store")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def connections(server: Server) -> AsyncIterator[list[NatsConnection]]:
    made = [await NatsConnection.open(ConnectOptions(server.url)) for _ in range(3)]
    yield made
    for each in made:
        await each.close()


@pytest.fixture
async def caller(connections: list[NatsConnection]) -> AsyncIterator[Bus]:
    async with session(connections[2], ONE) as bus:
        yield bus


def counter(bus: Bus, key: str = "a") -> Any:
    return bus.agents.get("counter", Counter, key=key)


class Clock:
    """Monotonic time that a test can shift, s."""

    def __init__(self) -> None:
        self.shift_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.shift_s


async def test_a_write_follows_what_was_read_or_is_refused(connections: list[NatsConnection]) -> None:
    store = JetStreamStates(connections[0], Subjects(), "one")
    await store.open()
    assert await store.read("counter", 3, "a b") == Found()
    first = await store.write("counter", 3, "a b", b"1", 0)
    with pytest.raises(Overtaken):
        await store.write("counter", 3, "a b", b"2", 0)
    second = await store.write("counter", 3, "a b", b"2", first)
    assert await store.read("counter", 3, "a b") == Found(second, b"2")
    assert await store.read("counter", 3, "a") == Found()
    await store.close()


async def test_a_partition_has_one_owner_and_the_next_hears_that_it_is_free(connections: list[NatsConnection]) -> None:
    one = JetStreamStates(connections[0], Subjects(), "one")
    two = JetStreamStates(connections[1], Subjects(), "two")
    await one.open()
    await two.open()
    heard: list[int] = []
    watching = await two.watch("counter", heard.append)
    await connections[1].flush()
    lease = await one.acquire("counter", 3)
    assert lease is not None
    assert await two.acquire("counter", 3) is None
    heard.clear()
    await lease.release()
    async with asyncio.timeout(5):
        while not heard:  # noqa: ASYNC110 - the server tells
            await asyncio.sleep(0.001)
    assert set(heard) == {3}
    later = await two.acquire("counter", 3)
    assert later is not None
    assert later.token > lease.token
    with pytest.raises(LeaseLost):
        lease.check()
    await later.release()
    await watching.unsubscribe()
    await one.close()
    await two.close()


async def test_no_update_is_lost_by_a_hundred_moves_under_load(connections: list[NatsConnection], caller: Bus) -> None:
    stores = [JetStreamStates(connections[number], Subjects(), f"p{number}") for number in range(2)]
    done, stopped = 0, False

    async def add() -> None:
        nonlocal done
        while not stopped:
            await counter(caller).add(1)
            done += 1

    async with process(connections[0], stores[0], "p0") as one, process(connections[1], stores[1], "p1") as two:
        owners = [one, two]
        owners[0].want({0})
        callers = [asyncio.create_task(add()) for _ in range(CALLERS)]
        for number in range(MOVES):
            enough = done + 2
            await until(lambda: done >= enough)  # noqa: B023 - awaited here
            owners[1 - number % 2].want({0})
            owners[number % 2].want(set())
            await until(lambda: owners[1 - number % 2].owned)  # noqa: B023 - likewise
        stopped = True
        await asyncio.gather(*callers)
        assert done >= 2 * MOVES
        assert await counter(caller).read() == done


async def test_states_outlive_a_server_that_is_started_again(
    server: Server, connections: list[NatsConnection], caller: Bus
) -> None:
    store = JetStreamStates(connections[0], Subjects(), "one")
    async with process(connections[0], store, "one") as owner:
        owner.want({0})
        assert await counter(caller).add(5) == 5
        await server.stop()
        call = asyncio.ensure_future(counter(caller).add(1))
        await asyncio.sleep(0)
        await server.start()
        assert await call == 6


class Gated(JetStreamStates):
    """Lets one write wait, as a process does that is paused before it."""

    def __init__(self, transport: NatsConnection, clock: Clock) -> None:
        super().__init__(transport, Subjects(), "paused", clock)
        self.paused, self.go = asyncio.Event(), asyncio.Event()
        self.refused = 0

    async def acquire(self, agent: str, partition: int) -> Lease | None:
        return None if self.paused.is_set() else await super().acquire(agent, partition)

    async def write(self, agent: str, partition: int, key: str, data: bytes, expected: int) -> int:
        self.paused.set()
        await self.go.wait()
        try:
            return await super().write(agent, partition, key, data, expected)
        except Overtaken:
            self.refused += 1
            raise


async def test_a_late_write_of_an_owner_whose_lease_is_over_is_refused_and_its_call_counts_once(
    connections: list[NatsConnection], caller: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    gated = Gated(connections[0], clock)
    # A process that is paused can give nothing up.
    monkeypatch.setattr("aikoryu.agents.tenancy.Tenancy.give_up", lambda self: None)
    async with (
        process(connections[0], gated, "paused") as one,
        process(connections[1], JetStreamStates(connections[1], Subjects(), "two"), "two") as two,
    ):
        one.want({0})
        late = asyncio.ensure_future(counter(caller).add(1))
        await gated.paused.wait()
        two.want({0})
        clock.shift_s = 60.0
        await until(lambda: two.owned)
        assert await counter(caller).add(1) == 1
        gated.go.set()
        assert await late == 2
        assert gated.refused == 1
        assert await counter(caller).read() == 2


@pytest.mark.parametrize("word", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_process_that_is_killed_or_paused_takes_no_update_with_it(server: Server, word: signal.Signals) -> None:
    settings = ai.Settings(nats=NatsSettings(url=server.url), bus=BusSettings(partitions=8, presence_ttl_s=0.5))
    child = await asyncio.create_subprocess_exec(sys.executable, str(MEMBER), server.url, stdout=PIPE)
    assert child.stdout is not None
    assert await asyncio.wait_for(child.stdout.readline(), 10) == b"ready\n"
    app = ai.App(settings=settings)
    app.add(Counter, "counter")
    keys = [str(number) for number in range(12)]
    done = dict.fromkeys(keys, 0)
    stopped = False

    async def add(bus: Bus, key: str) -> None:
        while not stopped:
            assert await counter(bus, key).add(1) == done[key] + 1
            done[key] += 1

    async def more(count: int) -> None:
        """Return when each key has so many more; leases expire on the server."""
        marks = {key: done[key] + count for key in keys}
        async with asyncio.timeout(10):
            while any(done[key] < marks[key] for key in keys):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    try:
        async with app as bus:
            own = app._process._owners[0]  # type: ignore[union-attr]
            await until(lambda: own.owned)
            callers = [asyncio.create_task(add(bus, key)) for key in keys]
            await more(5)
            assert len(own.owned) < 8
            child.send_signal(word)
            await more(5)
            assert len(own.owned) == 8
            if word is signal.SIGSTOP:
                child.send_signal(signal.SIGCONT)
                await until(lambda: len(own.owned) < 8)
                await more(5)
            stopped = True
            await asyncio.gather(*callers)
            assert {key: await counter(bus, key).read() for key in keys} == done
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()


@pytest.mark.parametrize(("key", "token"), [("a-1_B", "a-1_B"), ("_a", "_5f61"), ("a.b", "_612e62"), ("ä", "_c3a4")])
def test_any_key_is_one_token(key: str, token: str) -> None:
    assert token_of(key) == token
