"""The log of a partition on a real server: fencing, lost answers, late arrivals, restarts, marks."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from aikoryu.bus import connection as connection_module
from aikoryu.bus import jetstream as jetstream_module
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.errors import BadParameter, TooLarge
from aikoryu.bus.jetstream import JetStream, NoAnswer, Refused, Stored, Unavailable
from aikoryu.bus.log_entry import Entry, Kind
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.partition_log import LogGap, OwnershipLost, PartitionLog, Unresolved
from aikoryu.bus.server import EmbeddedServer
from aikoryu.bus.subjects import Subjects
from aikoryu.config import ServerSettings

SUBJECTS = Subjects()

StartServer = Callable[..., Awaitable[Any]]
Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


class Faulty(JetStream):
    """Fails its next publishes, one letter each.

    Attributes:
        faults: `a` the answer is lost, `r` the request is lost, `l` the request is late: it is kept in `late`;
            `u` no server takes it; `-` it passes.
        late: subjects, payloads and headers kept.
        sent: publishes so far; `busy` is set as one begins.
    """

    faults = ""

    def __init__(self, connection: NatsConnection) -> None:
        super().__init__(connection)
        self.late: list[tuple[str, bytes, dict[str, str] | None]] = []
        self.sent = 0
        self.busy = asyncio.Event()

    async def publish(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None, *, timeout_s: float | None = None
    ) -> int:
        fault, self.faults = self.faults[:1], self.faults[1:]
        self.sent += 1
        self.busy.set()
        if fault == "u":
            raise Unavailable("made so by the test")
        if fault == "l":
            self.late.append((subject, payload, headers))
        if fault in ("r", "l"):
            raise NoAnswer("lost by the test")
        sequence = await super().publish(subject, payload, headers, timeout_s=timeout_s)
        if fault == "a":
            raise NoAnswer("lost by the test")
        return sequence

    async def arrive(self) -> None:
        """What was late comes to the server now."""
        for subject, payload, headers in self.late:
            await self.transport.publish(subject, payload, headers=headers)
        await self.transport.flush()


class Owner:
    """A process with its connection and its log."""

    def __init__(self, jetstream: Faulty, log: PartitionLog) -> None:
        self.jetstream = jetstream
        self.log = log

    async def entries(self, after: int | None = None) -> list[Entry]:
        async with aclosing(self.log.replay(after)) as entries:
            return [entry async for entry in entries]

    async def changes(self) -> list[bytes]:
        return [entry.data for entry in await self.entries(0) if entry.kind is Kind.CHANGE]


Join = Callable[..., Awaitable[Owner]]


@pytest.fixture
async def join() -> AsyncIterator[Join]:
    """Connect owners of a log to a server; each is closed after the test."""
    async with AsyncExitStack() as stack:

        async def open_(url: str, name: str = "context.3", patience_s: float = 5.0) -> Owner:
            connection = await NatsConnection.open(ConnectOptions(url))
            stack.push_async_callback(connection.close)
            jetstream = await stack.enter_async_context(Faulty(connection))
            return Owner(jetstream, await PartitionLog.open(jetstream, SUBJECTS, name, patience_s=patience_s))

        yield open_


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts that suit a test."""
    monkeypatch.setattr(connection_module, "RETRY_LONGEST_S", 0.05)
    monkeypatch.setattr("aikoryu.bus.partition_log.RETRY_S", 0.01)


@pytest.fixture
async def url(start_server: StartServer, quick: None) -> str:
    server = await start_server()
    return str(server.url)


@pytest.fixture
async def owner(url: str, join: Join) -> Owner:
    """One that has claimed its log with token 5; the claim has sequence 1."""
    owner = await join(url)
    assert await owner.log.claim(5) == 1
    owner.jetstream.sent = 0
    owner.jetstream.busy.clear()
    return owner


@pytest.fixture
async def rival(url: str, owner: Owner, join: Join) -> Owner:
    """Another process, which has claimed nothing yet."""
    return await join(url)


# --- appending ------------------------------------------------------------------------------------------------------


async def test_changes_are_replayed_in_order_with_who_wrote_them(owner: Owner, url: str, join: Join) -> None:
    other = await join(url, "context.4")
    assert await other.log.claim(1) == 2
    assert await owner.log.append(b"a", 1) == 3
    assert await other.log.append(b"x", 2) == 4
    assert await owner.log.append(b"b", 3) == 5
    claim, a, b = await owner.entries()
    assert (claim.kind, claim.sequence, claim.previous, claim.token, claim.data) == (Kind.CLAIM, 1, 0, 5, b"")
    assert (a.kind, a.sequence, a.previous, a.token, a.mark, a.data) == (Kind.CHANGE, 3, 1, 5, 0, b"a")
    assert (b.previous, b.data) == (3, b"b")
    assert await owner.entries(3) == [b]
    assert await owner.entries(5) == []
    assert await other.changes() == [b"x"]


async def test_a_log_nobody_claimed_is_empty_and_takes_nothing(url: str, join: Join) -> None:
    owner = await join(url)
    assert await owner.entries() == []
    with pytest.raises(OwnershipLost, match="claim it with the token of a lease"):
        await owner.log.append(b"a", 0)
    with pytest.raises(OwnershipLost):
        await owner.log.resolve()
    with pytest.raises(BadParameter, match="take that of a lease"):
        await owner.log.claim(0)
    with pytest.raises(ValueError, match="log 'a b'"):
        await join(url, "a b")


async def test_a_change_to_a_state_that_is_not_the_latest_is_refused_here(owner: Owner) -> None:
    one, two = await asyncio.gather(owner.log.append(b"a", 1), owner.log.append(b"b", 1), return_exceptions=True)
    assert one == 2
    assert isinstance(two, BadParameter)
    assert "ends with 2, not 1" in str(two)
    assert await owner.log.append(b"c", 2) == 3
    assert await owner.changes() == [b"a", b"c"]


async def test_an_entry_the_server_refuses_for_good_leaves_the_log_as_it_was(owner: Owner) -> None:
    with pytest.raises(TooLarge):
        await owner.log.append(b"x" * 2**20, 1)
    stream = owner.log._stream
    config = (await owner.jetstream.api(f"STREAM.INFO.{stream}"))["config"]
    await owner.jetstream.api(f"STREAM.UPDATE.{stream}", {**config, "max_msgs": 1})
    with pytest.raises(Refused, match="maximum messages"):
        await owner.log.append(b"a", 1)
    await owner.jetstream.api(f"STREAM.UPDATE.{stream}", {**config, "max_msgs": -1})
    assert await owner.log.append(b"b", 1) == 2
    assert await owner.changes() == [b"b"]


# --- fencing --------------------------------------------------------------------------------------------------------


async def test_an_owner_of_the_past_cannot_append_and_cannot_claim_the_log_back(owner: Owner, rival: Owner) -> None:
    await owner.log.append(b"a", 1)
    assert await rival.log.claim(7) == 3
    with pytest.raises(OwnershipLost, match="drop its state") as caught:
        await owner.log.append(b"b", 2)
    assert caught.value.applied is False
    sent = owner.jetstream.sent
    with pytest.raises(OwnershipLost):
        await owner.log.append(b"b", 2)
    assert owner.jetstream.sent == sent
    with pytest.raises(OwnershipLost, match="claimed with token 7, after 5"):
        await owner.log.claim(5)
    await rival.log.append(b"c", 3)
    assert await owner.log.claim(8) == 5
    assert await owner.log.append(b"d", 5) == 6
    with pytest.raises(OwnershipLost):
        await rival.log.append(b"e", 4)
    assert await owner.changes() == [b"a", b"c", b"d"]
    tokens = [entry.token for entry in await owner.entries()]
    assert tokens == [5, 5, 7, 7, 8, 8]


async def test_of_claims_at_once_the_largest_token_stays(url: str, join: Join) -> None:
    owners = [await join(url) for _ in range(6)]
    claims = await asyncio.gather(
        *(owner.log.claim(token) for token, owner in enumerate(owners, 1)), return_exceptions=True
    )
    assert not isinstance(claims[-1], BaseException)
    assert all(isinstance(each, int | OwnershipLost) for each in claims)
    for owner, claim in zip(owners[:-1], claims, strict=False):
        with pytest.raises(OwnershipLost):
            await owner.log.append(b"a", claim if isinstance(claim, int) else 0)
    assert await owners[-1].log.append(b"b", claims[-1]) > claims[-1]
    tokens = [entry.token for entry in await owners[0].entries()]
    assert tokens == sorted(tokens)


# --- answers that are lost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", ["a", "r", "u", "ra", "ar", "aaa", "uar"])
async def test_trap_18_an_append_whose_answer_is_lost_is_there_once(owner: Owner, faults: str) -> None:
    owner.jetstream.faults = faults
    assert await owner.log.append(b"a", 1) == 2
    assert await owner.log.append(b"b", 2) == 3
    assert await owner.changes() == [b"a", b"b"]


@pytest.mark.parametrize("faults", ["a", "r", "u", "ra"])
async def test_a_claim_whose_answer_is_lost_is_there_once(url: str, join: Join, faults: str) -> None:
    owner = await join(url)
    owner.jetstream.faults = faults
    assert await owner.log.claim(5) == 1
    assert len(await owner.entries()) == 1


async def test_a_request_that_arrives_late_changes_nothing(owner: Owner) -> None:
    owner.jetstream.faults = "l"
    assert await owner.log.append(b"a", 1) == 2
    await owner.jetstream.arrive()
    assert await owner.log.append(b"b", 2) == 3
    await owner.jetstream.arrive()
    assert await owner.changes() == [b"a", b"b"]


async def test_a_request_of_the_past_that_arrives_after_a_claim_changes_nothing(owner: Owner, rival: Owner) -> None:
    owner.jetstream.faults = "l" * 1000
    append = asyncio.create_task(owner.log.append(b"a", 1))
    await owner.jetstream.busy.wait()
    append.cancel()
    await asyncio.gather(append, return_exceptions=True)
    await rival.log.claim(6)
    await owner.jetstream.arrive()
    assert await rival.changes() == []
    owner.jetstream.faults = ""
    with pytest.raises(OwnershipLost) as caught:
        await owner.log.resolve()
    assert caught.value.applied is False


async def test_applied_without_an_answer_and_then_overtaken_is_known_as_applied(
    owner: Owner, rival: Owner, eventually: Eventually
) -> None:
    owner.jetstream.faults = "a" + "r" * 1000
    append = asyncio.create_task(owner.log.append(b"a", 1))
    await eventually(lambda: owner.jetstream.sent >= 2)
    await rival.log.claim(6)
    owner.jetstream.faults = ""
    assert await append == 2
    with pytest.raises(OwnershipLost):
        await owner.log.append(b"b", 2)


async def test_what_became_of_an_entry_is_unknown_once_its_place_is_purged(
    owner: Owner, rival: Owner, eventually: Eventually
) -> None:
    owner.jetstream.faults = "a" + "r" * 1000
    append = asyncio.create_task(owner.log.append(b"a", 1))
    await eventually(lambda: owner.jetstream.sent >= 2)
    await rival.log.mark(b"snapshot", await rival.log.claim(6))
    await rival.log.purge()
    owner.jetstream.faults = ""
    with pytest.raises(OwnershipLost) as caught:
        await append
    assert caught.value.applied is None


async def test_unresolved_after_its_patience_and_resolved_later(url: str, join: Join) -> None:
    owner = await join(url, patience_s=0.1)
    await owner.log.claim(5)
    for faults, data in (("a" + "r" * 1000, b"a"), ("r" * 1000, b"b")):
        owner.jetstream.faults = faults
        with pytest.raises(Unresolved, match="resolve it"):
            await owner.log.append(data, owner.log.last)
        with pytest.raises(Unresolved):
            await owner.log.append(b"another", owner.log.last)
        owner.jetstream.faults = ""
        before = owner.log.last
        with pytest.raises(BadParameter):
            await owner.log.append(b"another", before)
        assert await owner.log.resolve() == before + 1
    assert await owner.changes() == [b"a", b"b"]
    owner.jetstream.faults = "u" * 1000
    with pytest.raises(Unavailable):
        await owner.log.append(b"nowhere", owner.log.last)
    owner.jetstream.faults = ""
    assert await owner.log.resolve() == 3
    owner.jetstream.faults = "r" * 1000
    with pytest.raises(Unresolved):
        await owner.log.claim(6)
    owner.jetstream.faults = ""
    assert await owner.log.claim(6) == 4


async def test_a_cancelled_append_is_settled_before_the_next(owner: Owner) -> None:
    append = asyncio.create_task(owner.log.append(b"a", 1))
    await owner.jetstream.busy.wait()
    append.cancel()
    await asyncio.gather(append, return_exceptions=True)
    assert append.cancelled()
    with pytest.raises(BadParameter, match="ends with 2, not 1"):
        await owner.log.append(b"b", 1)
    assert await owner.log.append(b"b", 2) == 3
    assert await owner.changes() == [b"a", b"b"]


# --- the server goes and comes --------------------------------------------------------------------------------------


async def test_an_append_waits_for_the_server_and_the_log_outlives_it(join: Join, tmp_path: Path, quick: None) -> None:
    server = EmbeddedServer(ServerSettings(port=0, store_dir=str(tmp_path)))
    await server.start()
    port = urlsplit(server.url).port or 0
    owner = await join(server.url)
    last = await owner.log.append(b"a", await owner.log.claim(5))
    await server.stop()
    append = asyncio.create_task(owner.log.append(b"b", last))
    async with EmbeddedServer(ServerSettings(port=port, store_dir=str(tmp_path))):
        assert await append == last + 1
        assert await owner.changes() == [b"a", b"b"]


async def test_trap_15_what_was_acknowledged_outlives_a_killed_server(
    join: Join, tmp_path: Path, quick: None, eventually: Eventually
) -> None:
    server = EmbeddedServer(ServerSettings(port=0, store_dir=str(tmp_path)))
    await server.start()
    port = urlsplit(server.url).port or 0
    owner = await join(server.url)
    acknowledged = [b"0"]
    last = await owner.log.append(b"0", await owner.log.claim(5))

    async def append() -> None:
        nonlocal last
        while len(acknowledged) < 2000:
            data = str(len(acknowledged)).encode()
            last = await owner.log.append(data, last)
            acknowledged.append(data)

    appending = asyncio.create_task(append())
    await eventually(lambda: len(acknowledged) > 300)
    assert server._process is not None
    os.kill(server._process.pid, signal.SIGKILL)
    await server._process.wait()
    await server.stop()
    async with EmbeddedServer(ServerSettings(port=port, store_dir=str(tmp_path))):
        await appending
        assert await owner.changes() == acknowledged


# --- replay, marks, purge -------------------------------------------------------------------------------------------


async def test_trap_16_a_replay_of_many_entries_is_whole(
    owner: Owner, rival: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream_module, "SCAN_MESSAGES", 7)
    last = 1
    for number in range(50):
        last = await owner.log.append(b"%d" % number, last)
    assert await rival.changes() == [b"%d" % number for number in range(50)]


async def test_a_message_that_did_not_arrive_is_asked_for_again(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    last = 1
    for number in range(5):
        last = await owner.log.append(b"%d" % number, last)
    scan, dropped = owner.jetstream.scan, []

    async def lossy(stream: str, subject: str, sequence: int) -> Any:
        async with aclosing(scan(stream, subject, sequence)) as found:
            async for stored in found:
                if stored.sequence in (3, 6) and stored.sequence not in dropped:
                    dropped.append(stored.sequence)
                else:
                    yield stored

    monkeypatch.setattr(owner.jetstream, "scan", lossy)
    assert await owner.changes() == [b"0", b"1", b"2", b"3", b"4"]
    assert dropped == [3, 6]


async def test_a_replica_that_stays_behind_ends_the_replay(
    url: str, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await join(url, patience_s=0.05)
    await owner.log.claim(5)

    async def behind(stream: str, subject: str, sequence: int) -> Any:
        for stored in list[Stored]():
            yield stored

    monkeypatch.setattr(owner.jetstream, "scan", behind)
    with pytest.raises(NoAnswer, match="go on after 0 later"):
        await owner.entries()


async def test_replay_begins_with_the_latest_mark_and_purge_deletes_what_precedes_it(
    owner: Owner, rival: Owner
) -> None:
    await owner.log.purge()
    last = await owner.log.append(b"a", 1)
    mark = await owner.log.mark(b"snapshot 1", last)
    assert [entry.data for entry in await rival.entries()] == [b"snapshot 1"]
    last = await owner.log.append(b"b", mark)
    assert [entry.data for entry in await rival.entries()] == [b"snapshot 1", b"b"]
    assert [entry.sequence for entry in await rival.entries(0)] == [1, 2, 3, 4]
    await owner.log.purge()
    await owner.log.purge()
    with pytest.raises(LogGap, match="3 follows 2, but 0 was the last one read: replay from the latest mark"):
        await rival.entries(0)
    assert [entry.data for entry in await rival.entries(mark)] == [b"b"]
    await rival.log.claim(6)
    assert [entry.data for entry in await rival.entries()] == [b"snapshot 1", b"b", b""]
    # The mark of an earlier owner is this one's too.
    await rival.log.purge()
    assert (await rival.entries())[0].mark == 0
    assert (await rival.entries())[1].mark == mark


async def test_a_snapshot_that_ended_before_its_mark_is_recovered_from(owner: Owner, rival: Owner) -> None:
    assert await owner.log.latest_mark() is None
    ended = await owner.log.append(b"a", 1)
    after = await owner.log.append(b"b", ended)
    mark = await owner.log.mark(b"up to 2", after)
    found = await rival.log.latest_mark()
    assert found is not None
    assert (found.sequence, found.data) == (mark, b"up to 2")
    await owner.log.append(b"c", mark)
    await owner.log.purge(ended + 1)
    assert await rival.log.latest_mark() == found
    assert [entry.data for entry in await rival.entries(ended)] == [b"b", b"up to 2", b"c"]
    with pytest.raises(LogGap):
        await rival.entries(0)
    await owner.log.purge(mark + 1)
    assert [entry.data for entry in await rival.entries(mark - 1)] == [b"up to 2", b"c"], "the mark stays"


@pytest.mark.parametrize("before", [0, 1])
async def test_a_purge_of_what_precedes_the_first_entry_deletes_nothing(owner: Owner, before: int) -> None:
    await owner.log.mark(b"snapshot", await owner.log.append(b"a", 1))
    await owner.log.purge(before)
    assert await owner.changes() == [b"a"]


async def test_a_latest_mark_that_is_purged_meanwhile_is_told(
    owner: Owner, rival: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = await owner.log.mark(b"one", 1)
    await owner.log.append(b"a", mark)
    tail = rival.log._tail

    async def overtaken() -> Entry | None:
        seen = await tail()
        await owner.log.mark(b"two", owner.log.last)
        await owner.log.purge()
        return seen

    monkeypatch.setattr(rival.log, "_tail", overtaken)
    with pytest.raises(LogGap, match="ask again for the latest"):
        await rival.log.latest_mark()
    monkeypatch.undo()
    found = await rival.log.latest_mark()
    assert found is not None
    assert found.data == b"two"


async def test_a_purged_log_takes_no_entry_that_expects_an_empty_one(owner: Owner) -> None:
    owner.jetstream.faults = "l"
    fresh = PartitionLog(owner.jetstream, owner.log._stream, f"{owner.log._subject}.fresh", 5.0)
    await fresh.claim(9)
    await fresh.mark(b"snapshot", fresh.last)
    await fresh.purge()
    before = fresh.last
    # The first attempt to claim arrives now; it expects an empty log.
    await owner.jetstream.arrive()
    assert await fresh.append(b"a", before) > before


async def test_a_broken_chain_and_a_foreign_message_are_told(owner: Owner, rival: Owner) -> None:
    await owner.log.append(b"a", 1)
    write = owner.log._new(Kind.CHANGE, b"forged")
    write.previous = 1
    headers = {key: value for key, value in write.headers.items() if not key.startswith("Nats-")}
    await owner.jetstream.publish(owner.log._subject, b"forged", headers)
    with pytest.raises(LogGap, match="3 follows 1, but 2 was the last one read"):
        await rival.entries()
    await owner.jetstream.publish(owner.log._subject, b"foreign")
    with pytest.raises(BadParameter, match="message 4 is no entry of a log"):
        await rival.entries()
