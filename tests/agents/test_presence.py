"""Presence told and heard, on a bus in memory and a loop whose time jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from aikoryu.agents.announcements import Announced, Beat, Goodbye, Part, Question, decode, encode
from aikoryu.agents.lookout import LOOK_S, QUESTIONS, Lookout
from aikoryu.agents.presence import Presence
from aikoryu.bus.errors import Closed, ConnectionFailed
from aikoryu.bus.memory import MemoryBus, MemoryConnection
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message

SUBJECTS = Subjects()
TTL_S = 5.0
PLAN = (frozenset({"plan"}), ("plan",))


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: when nothing is ready, its time is that of the next timer.

    Attributes:
        now: its time, s; a test that adds to it stops the whole process for so long.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        assert ready or timeout is not None, "nothing will ever happen"
        if not ready and timeout:
            self._loop.now += timeout
        return ready


def jumping(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on a loop of its own, in no time."""

    def run() -> None:
        with asyncio.Runner(loop_factory=JumpingLoop) as runner:
            runner.run(test())

    run.__name__ = test.__name__
    return run


def loop() -> JumpingLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, JumpingLoop)
    return running


class Process:
    """One process on the bus, with agents that a test changes.

    Attributes:
        agents: its agents.
        loads: theirs.
        said: all that it told, to anybody, with the time.
    """

    def __init__(self, bus: MemoryBus, name: str, *agents: str) -> None:
        self.name = name
        self.connection = bus.connect()
        self.agents = [Announced(agent, *PLAN) for agent in agents]
        self.loads: dict[str, float] = {}
        self.said: list[tuple[float, str, Beat | Part | Goodbye]] = []
        self._send = self.connection.send
        self.connection.send = self._note  # type: ignore[method-assign]
        self.presence = Presence(
            self.connection,
            SUBJECTS,
            name,
            lambda: self.agents,
            lambda: self.loads,
            ttl_s=TTL_S,
            reply_prefixes=("_INBOX",),
        )
        self.lookout = Lookout(self.connection, SUBJECTS, seed=1)

    def kinds(self, subject: str = "") -> list[str]:
        """What it told, to a subject or to anybody: beat, Part or bye."""
        return [type(said).__name__ for _, to, said in self.said if subject in ("", to)]

    def _note(self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        if subject != SUBJECTS.presence:
            self.said.append((loop().now, subject, decode(payload)))
        self._send(subject, payload, reply, headers)


@asynccontextmanager
async def there(*processes: Process) -> AsyncIterator[None]:
    """The processes tell that they are there; at the end all stop."""
    for process in processes:
        await process.presence.start()
    await asyncio.sleep(0.01)
    yield
    for process in processes:
        await process.presence.stop()
        await process.lookout.close()
        await process.connection.close()


async def names(lookout: Lookout) -> list[str]:
    return [entry.name for entry in await lookout.find()]


# --- told -----------------------------------------------------------------------------------------------------------


@jumping
async def test_a_process_costs_one_small_message_a_beat() -> None:
    process = Process(MemoryBus(), "p1", *(f"agent-{number}" for number in range(1250)))
    async with there(process):
        await asyncio.sleep(100 * TTL_S)
        told = process.said[:]
    assert {subject for _, subject, _ in told} == {"aikoryu.v1.default.presence.p1"}
    assert process.kinds()[0] == "Part"
    beats = [at for at, _, said in told if isinstance(said, Beat)]
    assert len(beats) == len(told) - 1
    gaps = [later - earlier for earlier, later in pairwise(beats)]
    assert max(gaps) <= TTL_S / 3
    assert min(gaps) >= TTL_S / 3 * 0.8
    assert max(gaps) - min(gaps) > 0.2  # jitter
    assert max(len(encode(said)) for _, _, said in told if isinstance(said, Beat)) < 100


@jumping
async def test_loads_travel_with_the_beat_when_they_changed() -> None:
    process = Process(MemoryBus(), "p1", "a", "b")
    async with there(process):
        process.loads = {"b": 1.5}
        await asyncio.sleep(2 * TTL_S)
    beats = [said for _, _, said in process.said if isinstance(said, Beat)]
    assert [(beat.at, beat.loads) for beat in beats if beat.at] == [([1], [150])]


@jumping
async def test_agents_that_come_one_by_one_make_a_list_now_and_then() -> None:
    bus = MemoryBus()
    process, other = Process(bus, "p1", "agent-0"), Process(bus, "p2")
    async with there(process, other):
        assert await names(other.lookout) == ["agent-0"]
        process.said.clear()
        for number in range(1, 501):
            process.agents.append(Announced(f"agent-{number}", *PLAN))
            process.presence.changed()
            await asyncio.sleep(0.002)
        await asyncio.sleep(TTL_S / 10)
        assert process.kinds().count("Part") <= 4
        assert len(await names(other.lookout)) == 501


@jumping
async def test_a_change_alone_is_told_at_once() -> None:
    bus = MemoryBus()
    process, other = Process(bus, "p1", "a"), Process(bus, "p2")
    async with there(process, other):
        await other.lookout.find()
        await asyncio.sleep(1)
        process.agents = []
        process.presence.changed()
        await asyncio.sleep(0.001)
        assert await names(other.lookout) == []


@jumping
async def test_goodbye_is_the_last_word() -> None:
    bus = MemoryBus()
    process, other = Process(bus, "p1", "a"), Process(bus, "p2")
    async with there(process, other):
        assert await names(other.lookout) == ["a"]
        process.presence.changed()
        await process.presence.stop()
        assert process.kinds()[-1] == "Goodbye"
        said = len(process.said)
        await asyncio.sleep(0.001)
        assert await names(other.lookout) == []
        await asyncio.sleep(2 * TTL_S)
        assert len(process.said) == said


@jumping
async def test_a_list_larger_than_a_message_comes_in_parts() -> None:
    bus = MemoryBus(max_payload=4096)
    process, other = Process(bus, "p1", *(f"agent-{number}" for number in range(1250))), Process(bus, "p2")
    async with there(process, other):
        assert len(await names(other.lookout)) == 1250
        assert process.kinds().count("Part") > 5


@jumping
async def test_only_inboxes_are_answered() -> None:
    bus = MemoryBus()
    process = Process(bus, "p1", "a")
    asker = bus.connect()
    async with there(process):
        process.said.clear()
        for reply in ("aikoryu.v1.default.matrix.matmul", "_INBOXES.x", ""):
            await asker.publish(SUBJECTS.presence, encode(Question()), reply)
        await asker.publish(SUBJECTS.presence, b"?", "_INBOX.x")
        await asker.publish(SUBJECTS.presence, encode(Question("p2")), "_INBOX.x")
        await asyncio.sleep(0.01)
        assert process.said == []
        await asker.publish(SUBJECTS.presence, encode(Question("p1")), "_INBOX.x")
        await asyncio.sleep(0.01)
        assert process.kinds("_INBOX.x") == ["Part"]


@jumping
async def test_questions_beyond_so_many_a_second_are_not_answered() -> None:
    bus = MemoryBus()
    process = Process(bus, "p1", "a")
    asker = bus.connect()
    async with there(process):
        process.said.clear()
        for _ in range(3000):
            await asker.publish(SUBJECTS.presence, encode(Question()), "_INBOX.x")
        await asyncio.sleep(0.01)
        assert len(process.kinds("_INBOX.x")) == 1024
        assert process.presence.unanswered == 3000 - 1024
        await asyncio.sleep(1)
        await asker.publish(SUBJECTS.presence, encode(Question()), "_INBOX.x")
        await asyncio.sleep(0.01)
        assert len(process.kinds("_INBOX.x")) == 1025


@jumping
async def test_forged_announcements_are_dropped_and_counted_and_few_lists_are_asked_for() -> None:
    bus = MemoryBus()
    process, forger = Process(bus, "p1", "a"), bus.connect()
    questions: list[Message] = []
    await forger.subscribe(SUBJECTS.presence, questions.append)
    lookout = Lookout(bus.connect(), SUBJECTS, seed=1)
    async with there(process):
        assert await names(lookout) == ["a"]
        questions.clear()
        with capture_logs() as logs:
            for number in range(5000):
                beat = Beat(process=f"f{number}", incarnation=1, version=1, told=0, ttl_ms=1000)
                await forger.publish(SUBJECTS.presence_of(f"f{number}"), encode(beat))
            await asyncio.sleep(0.01)
        assert lookout.dropped == 5000 + 1 - 4096
        assert [line["count"] for line in logs if line["event"] == "announcement dropped"] == [
            1 << n for n in range(10)
        ]
        assert len(questions) == QUESTIONS
        assert await names(lookout) == ["a"]
        await lookout.close()


# --- heard ----------------------------------------------------------------------------------------------------------


@jumping
async def test_10_000_agents_in_8_processes_are_found_and_ghosts_are_gone_in_time() -> None:
    bus = MemoryBus()
    processes = [Process(bus, f"p{p}", *(f"agent-{p}-{number}" for number in range(1250))) for p in range(8)]
    lookout = Lookout(bus.connect(), SUBJECTS, seed=1)
    async with there(*processes):
        assert len(await lookout.find(capabilities={"plan"})) == 10_000
        assert [entry.process for entry in await lookout.find("agent-3-77")] == ["p3"]
        for process in processes:
            process.said.clear()
        await asyncio.sleep(1.0)
        bus.drop_connection(processes[3].connection)
        await asyncio.sleep(TTL_S)
        found = {entry.process for entry in await lookout.find(capabilities={"plan"})}
        assert found == {f"p{p}" for p in range(8)} - {"p3"}
        assert {kind for process in processes for kind in process.kinds()} == {"Beat"}
        assert sum(len(process.said) for process in processes) <= 8 * (1 + TTL_S) / (TTL_S / 3 * 0.8) + 8
        await lookout.close()


@jumping
async def test_nobody_listens_before_the_first_question() -> None:
    bus = MemoryBus()
    process = Process(bus, "p1", "a")
    listener = bus.connect()
    lookout = Lookout(listener, SUBJECTS)
    async with there(process):
        await asyncio.sleep(TTL_S)
        assert listener.subscriptions == []
        assert await names(lookout) == ["a"]
        process.said.clear()
        assert await names(lookout) == ["a"]
        assert "Part" not in process.kinds()
        await lookout.close()
        assert listener.subscriptions == []


@jumping
async def test_where_nobody_is_the_first_question_takes_no_time() -> None:
    lookout = Lookout(MemoryBus().connect(), SUBJECTS)
    began = loop().now
    assert await lookout.find("planner") == []
    assert loop().now - began < 0.01
    await lookout.close()


@jumping
async def test_who_asks_at_the_same_time_asks_once() -> None:
    bus = MemoryBus()
    process = Process(bus, "p1", "a")
    lookout = Lookout(bus.connect(), SUBJECTS)
    async with there(process):
        process.said.clear()
        impatient = asyncio.create_task(lookout.find())
        others = [asyncio.create_task(lookout.find()) for _ in range(5)]
        await asyncio.sleep(0)
        impatient.cancel()
        assert {len(found) for found in await asyncio.gather(*others)} == {1}
        assert process.kinds().count("Part") == 1
        await lookout.close()


@jumping
async def test_paused_process_is_gone_and_returns() -> None:
    bus = MemoryBus()
    process, other = Process(bus, "p1", "a"), Process(bus, "p2", "b")
    async with there(process, other):
        assert await names(other.lookout) == ["a", "b"]
        bus.drop_connection(process.connection)
        await asyncio.sleep(TTL_S)
        assert await names(other.lookout) == ["b"]
        bus.restore(process.connection)
        await asyncio.sleep(0.01)  # its beat, the question for its list, and the list
        assert await names(other.lookout) == ["a", "b"]


@jumping
async def test_listener_that_was_paused_drops_nobody_before_it_has_read() -> None:
    bus = MemoryBus()
    process, other = Process(bus, "p1", "a"), Process(bus, "p2", "b")
    async with there(process, other):
        assert await names(other.lookout) == ["a", "b"]
        loop().now += 10 * TTL_S
        assert await names(other.lookout) == ["a", "b"]
        await asyncio.sleep(2 * TTL_S)
        assert await names(other.lookout) == ["a", "b"]


@jumping
async def test_lost_connection_keeps_the_roster_and_asks_when_it_is_back() -> None:
    bus = MemoryBus()
    process, ghost = Process(bus, "p1", "a"), Process(bus, "p2", "ghost")
    listener = bus.connect()
    lookout = Lookout(listener, SUBJECTS)
    async with there(process, ghost):
        assert await names(lookout) == ["a", "ghost"]
        bus.drop_connection(listener)
        bus.drop_connection(ghost.connection)
        process.agents.append(Announced("later", *PLAN))
        process.presence.changed()
        await asyncio.sleep(10 * TTL_S)
        assert [(entry.name, entry.stale) for entry in await lookout.find()] == [("a", True), ("ghost", True)]
        bus.restore(listener)
        await asyncio.sleep(0.01)
        found = [(entry.name, entry.stale) for entry in await lookout.find()]
        assert found == [("a", False), ("later", False), ("ghost", True)]
        await asyncio.sleep(TTL_S)
        assert await names(lookout) == ["a", "later"]
        await lookout.close()


@jumping
async def test_missed_list_is_asked_for_at_the_next_beat() -> None:
    bus = MemoryBus()
    process, other = Process(bus, "p1", "a"), Process(bus, "p2", "b")
    async with there(process, other):
        await other.lookout.find()
        bus.drop_connection(other.connection)
        process.agents = [Announced("c", *PLAN)]
        process.presence.changed()
        await asyncio.sleep(0.01)
        other.connection.on_reconnect.clear()  # as if the server had dropped the message, and nothing else
        bus.restore(other.connection)
        await asyncio.sleep(0.01)
        assert await names(other.lookout) == ["a", "b"]
        await asyncio.sleep(TTL_S / 3)
        assert await names(other.lookout) == ["c", "b"]
        other.connection.on_reconnect += [other.presence._beat]


@jumping
async def test_watch_tells_who_is_there_who_comes_and_who_goes_without_a_word() -> None:
    bus = MemoryBus()
    process, ghost, watcher = Process(bus, "p1", "a"), Process(bus, "p2", "ghost"), Process(bus, "p3")
    async with there(process, ghost, watcher), aclosing(watcher.lookout.watch()) as changes:
        first = [await anext(changes), await anext(changes)]
        assert {(change.joined, change.entry.name) for change in first} == {(True, "a"), (True, "ghost")}
        process.agents.append(Announced("b", *PLAN))
        process.presence.changed()
        assert (await anext(changes)).entry.name == "b"
        await asyncio.sleep(1)
        bus.drop_connection(ghost.connection)
        began = loop().now
        joined, entry = await anext(changes)
        assert (joined, entry.name) == (False, "ghost")
        assert loop().now - began <= TTL_S + 0.001
        bus.restore(ghost.connection)
        assert await anext(changes) == (True, entry)


@jumping
async def test_two_watchers_both_hear_though_one_is_slow() -> None:
    bus = MemoryBus()
    process, watcher = Process(bus, "p1", "a"), Process(bus, "p2")
    async with there(process, watcher):
        slow, quick = watcher.lookout.watch(), watcher.lookout.watch()
        await anext(slow)
        await anext(quick)
        process.agents.append(Announced("b", *PLAN))
        process.presence.changed()
        assert (await anext(quick)).entry.name == "b"
        began = loop().now
        assert (await anext(slow)).entry.name == "b"
        assert loop().now == began
        await slow.aclose()
        await quick.aclose()


@jumping
async def test_close_lets_go_of_who_watches_and_who_asks() -> None:
    bus = MemoryBus()
    process = Process(bus, "p1", "a")
    lookout = Lookout(bus.connect(), SUBJECTS)
    async with there(process):
        watching = lookout.watch()
        await anext(watching)
        waiting = asyncio.create_task(anext(watching, None))
        await asyncio.sleep(LOOK_S)
        await lookout.close()
        assert await waiting is None
        with pytest.raises(Closed):
            await lookout.find()


@jumping
async def test_close_is_told_to_who_still_waits_for_the_first_answers() -> None:
    bus = MemoryBus()
    deaf = bus.connect()
    await deaf.subscribe(SUBJECTS.presence, lambda message: None)  # so that the server does not say that nobody is
    lookout = Lookout(bus.connect(), SUBJECTS)
    waiting = asyncio.create_task(lookout.find())
    await asyncio.sleep(0.01)
    await lookout.close()
    with pytest.raises(Closed, match="before it was known who is there"):
        await waiting


@jumping
async def test_a_refused_user_is_told_and_may_try_again() -> None:
    bus = MemoryBus()
    connection = bus.connect()
    lookout = Lookout(connection, SUBJECTS)
    flush = connection.flush

    async def refused() -> None:
        raise ConnectionFailed("may not subscribe")

    connection.flush = refused  # type: ignore[method-assign]
    with pytest.raises(ConnectionFailed):
        await lookout.find()
    assert connection.subscriptions == []
    connection.flush = flush  # type: ignore[method-assign]
    assert await lookout.find() == []
    await lookout.close()


@jumping
async def test_what_is_no_announcement_is_let_pass() -> None:
    bus = MemoryBus()
    process = Process(bus, "p1", "a")
    stranger: MemoryConnection = bus.connect()
    heard: list[Message] = []
    await stranger.subscribe(f"{SUBJECTS.presence}.*", heard.append)
    async with there(process):
        await process.lookout.find()
        await stranger.publish(SUBJECTS.presence_of("p9"), b"\xc1")
        await asyncio.sleep(TTL_S)
        assert await names(process.lookout) == ["a"]
        assert {bytes(message.data) for message in heard} > {b"\xc1"}
