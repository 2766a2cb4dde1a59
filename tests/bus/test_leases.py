"""Leases on a real server: what two holders, a lost connection, a jumping clock and a lost answer do to them."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from aikoryu.bus import bucket as bucket_module
from aikoryu.bus import connection as connection_module
from aikoryu.bus import lease_bucket
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.errors import BadParameter
from aikoryu.bus.jetstream import JetStream, NoAnswer, Refused
from aikoryu.bus.lease_bucket import Held
from aikoryu.bus.leases import Lease, LeaseLost, Leases
from aikoryu.bus.memory import MemoryMessage
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.partition_log import OwnershipLost, PartitionLog
from aikoryu.bus.server import EmbeddedServer
from aikoryu.bus.subjects import Subjects
from aikoryu.config import ServerSettings

SUBJECTS = Subjects()


class Clock:
    """Monotonic time that a test can shift, s."""

    def __init__(self) -> None:
        self.shift_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.shift_s


class Deaf(JetStream):
    """Loses the answers to its next publishes, which the server has applied.

    Attributes:
        losses: answers still to be lost.
    """

    losses = 0

    async def publish(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None, *, timeout_s: float | None = None
    ) -> int:
        sequence = await super().publish(subject, payload, headers, timeout_s=timeout_s)
        if self.losses:
            self.losses -= 1
            raise NoAnswer("lost by the test")
        return sequence


class Party:
    """One process's connection, with its leases.

    Attributes:
        clock: its holders' own.
    """

    def __init__(self, connection: NatsConnection, jetstream: Deaf, leases: Leases, clock: Clock) -> None:
        self.connection = connection
        self.jetstream = jetstream
        self.leases = leases
        self.clock = clock

    async def take(self, name: str, ttl_s: int = 1) -> Lease:
        async with asyncio.timeout(10):
            return await self.leases.acquire(name, ttl_s=ttl_s)


class Wire:
    """A way to the server that can be held up: nothing passes, and nobody is told; later everything arrives."""

    def __init__(self, url: str) -> None:
        self.url = ""
        self._to = urlsplit(url)
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold_up(self) -> None:
        self._open.clear()

    def let_pass(self) -> None:
        self._open.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._join(reader, writer)))

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._to.hostname, self._to.port)
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            writer.close()
            far_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
        writer.close()


Join = Callable[..., Awaitable[Party]]
StartServer = Callable[..., Awaitable[Any]]
Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
async def join() -> AsyncIterator[Join]:
    """Connect parties to a server; each is closed after the test."""
    async with AsyncExitStack() as stack:

        async def open_(url: str, name: str = "party") -> Party:
            connection = await NatsConnection.open(ConnectOptions(url))
            stack.push_async_callback(connection.close)
            jetstream = await stack.enter_async_context(Deaf(connection))
            clock = Clock()
            return Party(connection, jetstream, await Leases.open(jetstream, SUBJECTS, name, clock), clock)

        yield open_


@pytest.fixture
async def wire() -> AsyncIterator[Callable[[str], Awaitable[Wire]]]:
    """A way to a server that can be held up."""
    async with AsyncExitStack() as stack:

        async def open_(url: str) -> Wire:
            made = Wire(url)
            await made.start()
            stack.push_async_callback(made.stop)
            return made

        yield open_


@pytest.fixture
def hints_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a change is woken by word of it, or not at all."""
    monkeypatch.setattr(bucket_module, "LOOK_AGAIN_S", 3600.0)


async def killed(party: Party) -> None:
    """End a party as `kill -9` would: its connection goes first, so that nothing can be released."""
    await party.connection._client.abandon()
    await party.connection.close()


# --- holding --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hints_only")
async def test_one_holds_and_the_next_gets_it_when_it_is_released(start_server: StartServer, join: Join) -> None:
    server = await start_server()
    one, two = await join(server.url), await join(server.url)
    async with one.leases.hold("partition.3", ttl_s=30) as lease:
        assert lease.held
        lease.check()
        assert await two.leases.try_acquire("partition.3", ttl_s=30) is None
        other = await two.leases.try_acquire("partition.4", ttl_s=30)
        assert other is not None
        waiting = asyncio.create_task(two.take("partition.3", ttl_s=30))
        await two.connection.flush()
        assert not waiting.done()
    assert not lease.held
    assert await lease.lost() == "its holder released it"
    with pytest.raises(LeaseLost, match=r"partition\.3 is lost: its holder released it\. Acquire it again"):
        lease.check()
    next_one = await waiting
    assert next_one.held
    assert next_one.token > lease.token
    await lease.release()
    assert next_one.held
    await next_one.release()
    await other.release()


async def test_lease_is_released_when_its_body_fails_or_is_cancelled(start_server: StartServer, join: Join) -> None:
    server = await start_server()
    party = await join(server.url)
    with pytest.raises(ZeroDivisionError):
        async with party.leases.hold("a", ttl_s=30):
            raise ZeroDivisionError
    entered = asyncio.Event()

    async def hold() -> None:
        async with party.leases.hold("a", ttl_s=30):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await entered.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    lease = await party.leases.try_acquire("a", ttl_s=30)
    assert lease is not None
    await lease.release()


@pytest.mark.parametrize("ttl_s", [0, -1, 1.5, True])
async def test_trap_14_a_time_to_live_is_whole_seconds(start_server: StartServer, join: Join, ttl_s: Any) -> None:
    server = await start_server()
    party = await join(server.url)
    with pytest.raises(BadParameter, match="whole seconds, 1 or more"):
        await party.leases.acquire("a", ttl_s=ttl_s)


async def test_trap_14_the_server_cuts_a_time_to_live_to_whole_seconds(start_server: StartServer, join: Join) -> None:
    server = await start_server()
    party = await join(server.url)
    began = time.monotonic()
    stream = party.leases._bucket._keys.stream
    await party.jetstream.publish(party.leases._bucket._keys.subject("a"), b"x", {"Nats-TTL": "1900ms"})
    while (stored := await party.jetstream.last(stream, party.leases._bucket._keys.subject("a"))) and stored.data:
        assert time.monotonic() - began < 1.7, "the server keeps fractions now: tell it the exact time"


@pytest.mark.usefixtures("hints_only")
async def test_trap_14_a_renewed_lease_outlives_its_first_term_and_expires_when_its_holder_is_killed(
    start_server: StartServer, join: Join
) -> None:
    server = await start_server()
    one, two = await join(server.url), await join(server.url)
    lease = await one.take("a", ttl_s=1)
    waiting = asyncio.create_task(two.take("a", ttl_s=1))
    done, _ = await asyncio.wait({waiting}, timeout=1.6)
    assert not done
    assert lease.held
    await killed(one)
    began = time.monotonic()
    after = await waiting
    assert time.monotonic() - began < 1.5
    assert after.token > lease.token
    await after.release()


@pytest.mark.usefixtures("hints_only")
async def test_trap_14_expiry_is_told_to_a_watcher(start_server: StartServer, join: Join) -> None:
    server = await start_server()
    one, two = await join(server.url, "one"), await join(server.url, "two")
    async with asyncio.timeout(10), aclosing(two.leases.watch("a")) as states:
        assert await anext(states) is None
        lease = await one.take("a", ttl_s=1)
        assert await anext(states) == Held("one", lease.token)
        await killed(one)
        assert await anext(states) is None
        own = await two.take("a", ttl_s=1)
        assert await anext(states) == Held("two", own.token)
        await own.release()
        assert await anext(states) is None


async def test_trap_14_taken_after_a_release_over_an_expiry_marker_and_after_the_marker(
    start_server: StartServer, join: Join, eventually: Eventually
) -> None:
    server = await start_server()
    party, two = await join(server.url), await join(server.url)
    bucket = two.leases._bucket
    first = await party.take("a")
    await first.release()
    second = await party.take("a")
    await killed(party)
    while (await bucket.read("a")).record is not None:
        pass
    assert (await bucket.read("a")).sequence > second.token  # the server's marker
    third = await two.take("a")
    await third.release()
    while (await bucket.read("a")).sequence:
        pass
    fourth = await two.take("a")
    assert first.token < second.token < third.token < fourth.token
    await fourth.release()


async def test_a_key_that_holds_something_else_is_left_alone(start_server: StartServer, join: Join) -> None:
    server = await start_server()
    party = await join(server.url)
    await party.jetstream.publish(party.leases._bucket._keys.subject("a"), b"by hand")
    with pytest.raises(BadParameter, match=r"lease a holds something else .*: delete it"):
        await party.leases.acquire("a", ttl_s=1)
    with pytest.raises(ValueError, match="lease 'a b'"):
        await party.leases.acquire("a b", ttl_s=1)


async def test_buses_whose_names_make_the_same_bucket_do_not_share_it(start_server: StartServer, join: Join) -> None:
    server = await start_server()
    party = await join(server.url)
    await Leases.open(party.jetstream, Subjects("a.b"), "one")
    with pytest.raises(Refused, match=r"description is 'leases of a\.b\.v1\.default'"):
        await Leases.open(party.jetstream, Subjects("a-b"), "two")


# --- losing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
async def test_a_clock_that_jumps_ends_the_lease_at_once_and_it_is_given_back(
    start_server: StartServer, join: Join, jump_s: float
) -> None:
    server = await start_server()
    one, two = await join(server.url), await join(server.url)
    told: list[str] = []

    def fail(reason: str) -> None:
        raise ZeroDivisionError

    with capture_logs() as logs:
        async with one.leases.hold("a", ttl_s=1) as lease:
            lease.on_lost += [fail, told.append]
            one.clock.shift_s = jump_s
            assert not lease.held
            one.clock.shift_s = 0.0
            assert not lease.held
            async with asyncio.timeout(5):
                reason = await lease.lost()
            assert told == [reason]
    assert [line["event"] for line in logs] == ["lease lost", "on_lost failed"]
    after = await two.leases.try_acquire("a", ttl_s=1)
    assert after is not None
    await after.release()


async def test_a_holder_that_is_cut_off_ends_before_the_next_begins(
    start_server: StartServer, join: Join, wire: Callable[[str], Awaitable[Wire]]
) -> None:
    server = await start_server()
    way = await wire(server.url)
    one, two = await join(way.url), await join(server.url)
    lease = await one.take("a", ttl_s=1)
    ended: list[float] = []
    lease.on_lost.append(lambda reason: ended.append(time.monotonic()))
    way.hold_up()
    after = await two.take("a", ttl_s=1)
    began = time.monotonic()
    assert ended
    assert ended[0] < began
    assert not lease.held
    # Its renewals arrive now, and must not count.
    way.let_pass()
    await one.connection.flush()
    await lease.release()
    assert (await two.leases._bucket.read("a")).held == Held("party", after.token)
    assert after.held
    await after.release()


async def test_a_cut_shorter_than_the_lease_costs_nothing(
    start_server: StartServer, join: Join, wire: Callable[[str], Awaitable[Wire]]
) -> None:
    server = await start_server()
    way = await wire(server.url)
    party = await join(way.url)
    lease = await party.take("a", ttl_s=2)
    way.hold_up()
    # Past the first renewal and the wait for its answer.
    done, _ = await asyncio.wait({asyncio.create_task(lease.lost())}, timeout=1.2)
    assert not done
    way.let_pass()
    ended = asyncio.create_task(lease.lost())
    done, _ = await asyncio.wait({ended}, timeout=1.0)
    assert not done
    assert lease.held
    await lease.release()
    await ended


async def test_release_out_of_reach_of_the_server_ends_in_time(
    start_server: StartServer, join: Join, wire: Callable[[str], Awaitable[Wire]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aikoryu.bus.leases.RELEASE_WITHIN_S", 0.2)
    server = await start_server()
    way = await wire(server.url)
    party = await join(way.url)
    lease = await party.take("a", ttl_s=30)
    way.hold_up()
    async with asyncio.timeout(2):
        await lease.release()
    assert not lease.held
    way.let_pass()
    await lease.release()
    assert (await party.leases._bucket.read("a")).record is None


async def test_a_lease_whose_key_was_deleted_is_lost(start_server: StartServer, join: Join) -> None:
    server = await start_server()
    party = await join(server.url)
    lease = await party.take("a", ttl_s=1)
    await party.leases._bucket.erase("a", (await party.leases._bucket.read("a")).sequence)
    async with asyncio.timeout(3):
        assert "deleted it" in await lease.lost()


# --- answers that are lost ------------------------------------------------------------------------------------------


async def test_a_lease_taken_without_an_answer_is_found_and_held(start_server: StartServer, join: Join) -> None:
    server = await start_server()
    party = await join(server.url)
    party.jetstream.losses = 2
    with capture_logs() as logs:
        lease = await party.take("a", ttl_s=30)
    assert [line["failures"] for line in logs] == [1, 2]
    found = await party.leases._bucket.read("a")
    # The first write's sequence is the token, though it was written three times.
    assert (lease.token, found.sequence) == (1, 3)
    assert found.held == Held("party", 1)
    await lease.release()
    party.jetstream.losses = 1
    with pytest.raises(NoAnswer):
        await party.leases.try_acquire("a", ttl_s=1)


async def test_a_renewal_without_an_answer_is_found_and_the_lease_goes_on(
    start_server: StartServer, join: Join
) -> None:
    server = await start_server()
    party = await join(server.url)
    lease = await party.take("a", ttl_s=1)
    party.jetstream.losses = 1
    ended = asyncio.create_task(lease.lost())
    done, _ = await asyncio.wait({ended}, timeout=1.3)
    assert not done
    assert party.jetstream.losses == 0
    assert (await party.leases._bucket.read("a")).token == lease.token
    await lease.release()
    await ended


async def test_a_release_after_a_renewal_without_an_answer_frees_the_lease(
    start_server: StartServer, join: Join, eventually: Eventually
) -> None:
    server = await start_server()
    party = await join(server.url)
    lease = await party.take("a", ttl_s=1)
    party.jetstream.losses = 1
    await eventually(lambda: party.jetstream.losses == 0)
    await lease.release()
    assert (await party.leases._bucket.read("a")).record is None


# --- reconnects -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hints_only")
async def test_a_watcher_learns_after_a_reconnect_what_it_missed(
    start_server: StartServer, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "RETRY_LONGEST_S", 0.05)
    server = await start_server()
    one, two = await join(server.url, "one"), await join(server.url, "two")
    lease = await one.take("a", ttl_s=30)
    async with asyncio.timeout(10), aclosing(two.leases.watch("a")) as states:
        assert await anext(states) == Held("one", lease.token)
        # A hint that never came: the subscription is gone, as it is while a connection is lost.
        (hints,) = [each for each in two.connection._subscriptions if ".leases." in each.subject]
        assert hints.client is not None
        assert hints._inner is not None
        await hints.client.silence(hints._inner)
        await lease.release()
        two.connection._client._abort()
        assert await anext(states) is None


async def test_leases_and_tokens_outlive_a_restart_of_the_server(
    join: Join, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "RETRY_LONGEST_S", 0.05)
    server = EmbeddedServer(ServerSettings(port=0, store_dir=str(tmp_path)))
    await server.start()
    port = urlsplit(server.url).port or 0
    url = server.url
    party, two = await join(url), await join(url)
    short = await party.take("short", ttl_s=1)
    await short.release()
    lease = await party.take("a", ttl_s=2)
    waiting = asyncio.create_task(two.take("a", ttl_s=1))
    await server.stop()
    async with EmbeddedServer(ServerSettings(port=port, store_dir=str(tmp_path))):
        ended = asyncio.create_task(lease.lost())
        done, _ = await asyncio.wait({ended, waiting}, timeout=2.2)
        assert not done
        assert lease.held
        await lease.release()
        after = await waiting
        again = await party.take("short", ttl_s=1)
        assert short.token < lease.token < after.token < again.token
        await after.release()
        await again.release()
        await ended


# --- contention -----------------------------------------------------------------------------------------------------


async def test_exactly_one_holder_through_many_hand_overs_and_kills(start_server: StartServer, join: Join) -> None:
    """Holders count in a log; ended ones go on counting. Each number must stand there once, in order."""
    server = await start_server()
    hand_overs, kills = 60, 2
    chance = random.Random(7)
    numbers = itertools.count(1)
    terms: list[tuple[float, float]] = []
    fenced: list[bool] = []
    zombies: list[tuple[PartitionLog, int]] = []

    async def haunt() -> None:
        """Those that ended without noticing append to where they believe the log ends."""
        for log, last in zombies:
            with pytest.raises(OwnershipLost) as caught:
                await log.append(b"by an owner of the past", last)
            fenced.append(caught.value.applied is False)
        zombies.clear()

    async def contend() -> None:
        party = await join(server.url)
        while (number := next(numbers)) <= hand_overs:
            lease = await party.take("partition.3", ttl_s=1)
            began = time.monotonic()
            log = await PartitionLog.open(party.jetstream, SUBJECTS, "partition.3")
            last = await log.claim(lease.token)
            await haunt()
            async with aclosing(log.replay()) as entries:
                count = max([int(entry.data) async for entry in entries if entry.data], default=0)
            for _ in range(chance.randrange(4)):
                count += 1
                last = await log.append(str(count).encode(), last)
            lease.check()
            terms.append((began, time.monotonic()))
            zombies.append((log, last))
            if number % (hand_overs // kills) == 0:
                victim = party
                party = await join(server.url)
                # Its log goes on with another connection: a process that was paused, not ended.
                log._jetstream = party.jetstream
                await killed(victim)
            else:
                await lease.release()

    async with asyncio.timeout(30):
        await asyncio.gather(contend(), contend())
    party = await join(server.url)
    log = await PartitionLog.open(party.jetstream, SUBJECTS, "partition.3")
    async with aclosing(log.replay()) as replayed:
        entries = [entry async for entry in replayed]
    counts = [int(entry.data) for entry in entries if entry.data]
    assert counts == list(range(1, len(counts) + 1))
    assert len(counts) > hand_overs / 2
    tokens = [entry.token for entry in entries]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) == hand_overs
    terms.sort()
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(terms))
    assert len(fenced) == hand_overs - 1
    assert all(fenced)


# --- hints ----------------------------------------------------------------------------------------------------------


def test_renewals_wake_nobody_and_what_makes_no_sense_does() -> None:
    changes = lease_bucket.Changes()
    changes.known = Held("one", 5)

    def wakes(data: bytes, sequence: str = "9") -> bool:
        changes.clear()
        changes.on_event(MemoryMessage("leases.a", "", data, {"Nats-Sequence": sequence}))
        return changes._event.is_set()

    renewed = b'{"holder":"one","nonce":"n","ttl_s":1,"token":5}'
    assert not wakes(renewed)
    assert wakes(renewed.replace(b"5", b"8"))
    assert wakes(b"")
    assert wakes(b"nonsense")
    assert wakes(renewed, "many")
    changes.known = None
    assert wakes(renewed)
