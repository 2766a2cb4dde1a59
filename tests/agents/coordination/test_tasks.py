"""Tasks on a real server: each is done, whoever dies or falls silent, and those that came twice are counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from aikoryu.agents.coordination import Coordination, NoTask, TaskLost, claims
from aikoryu.agents.coordination import task as task_module
from aikoryu.agents.coordination.tasks import MAX_ATTEMPTS
from aikoryu.bus.errors import BadParameter, BadValue, Busy, Closed
from aikoryu.bus.jetstream import NoAnswer, Refused, Unavailable
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.subjects import Subjects

Join = Callable[..., Awaitable[Any]]
Spawn = Callable[[], Awaitable[Any]]


class Order(msgspec.Struct):
    item: str


async def all_of(queue: Any, timeout_s: float = 0) -> list[Any]:
    """Do whatever there is; the messages."""
    did = []
    async with asyncio.timeout(30):
        while True:
            try:
                async with queue.claim(timeout_s=timeout_s) as task:
                    did.append(task.message)
            except NoTask:
                return did


def waited(agent: Any) -> int:
    """How many requests for tasks somebody waits for."""
    return sum(pull.waited for floor in agent._floor._made for pull in floor.claims._pulls)


async def dead_of(queue: Any) -> list[Any]:
    async with aclosing(queue.dead()) as dead:
        return [each async for each in dead]


# --- putting and claiming -------------------------------------------------------------------------------------------


async def test_what_is_put_is_claimed_in_order_and_done_once(agent: Any) -> None:
    queue = agent.tasks("q")
    for number in range(5):
        await queue.put({"number": number})
    assert await all_of(queue) == [{"number": number} for number in range(5)]
    assert await all_of(queue) == []
    assert (queue.counts.claimed, queue.counts.done, queue.counts.repeated) == (5, 5, 0)


async def test_who_waits_has_a_task_as_soon_as_there_is_one(agent: Any, join: Join) -> None:
    queue, putter = agent.tasks("q", Order), (await join("two")).tasks("q", Order)

    async def work() -> Any:
        async with queue.claim() as task:
            return task.message.item

    waiting = [asyncio.create_task(work()) for _ in range(3)]
    async with asyncio.timeout(10):
        for item in ("tea", "milk", "salt"):
            await putter.put(Order(item))
        assert sorted(await asyncio.gather(*waiting)) == ["milk", "salt", "tea"]


async def test_no_task_comes_to_who_waits_in_vain(agent: Any) -> None:
    queue = agent.tasks("q")
    await agent.tasks("other").put(1)
    for timeout_s in (0, 0.05):
        with pytest.raises(NoTask, match=f"within {timeout_s:g} s: ask again"):
            async with queue.claim(timeout_s=timeout_s):
                pass


async def test_a_second_task_of_an_id_is_taken_when_the_first_is_done(agent: Any) -> None:
    queue = agent.tasks("q")
    assert await queue.put(1, id="seven") == "seven"
    await queue.put(2, id="seven")
    await agent.tasks("other").put(3, id="seven")
    async with queue.claim(timeout_s=0) as task:
        assert (task.id, task.message, task.attempt) == ("seven", 1, 1)
        await queue.put(2, id="seven")
    assert await all_of(queue) == []
    await queue.put(4, id="seven")
    assert await all_of(queue) == [4]
    assert len({await queue.put(number) for number in range(10)}) == 10


async def test_names_and_messages_are_checked(agent: Any) -> None:
    for name in ("a.b", "a b", ""):
        with pytest.raises(BadParameter):
            agent.tasks(name)
    with pytest.raises(BadParameter, match="without a dot"):
        await agent.tasks("q").put(1, id="a.b")
    with pytest.raises(BadValue, match="cannot be written"):
        await agent.tasks("q").put(object())


async def test_a_full_stream_takes_no_more(agent: Any) -> None:
    queue = agent.tasks("q")
    await queue.put(1)
    jetstream = await agent._jetstream()
    config = (await jetstream.api("STREAM.INFO.aikoryu-default-tasks"))["config"]
    await jetstream.api("STREAM.UPDATE.aikoryu-default-tasks", {**config, "max_msgs": 1})
    with pytest.raises(Busy, match="no room for tasks of q"):
        await queue.put(2)
    assert await all_of(queue) == [1]
    await queue.put(3)


async def test_an_operator_may_make_streams_larger_and_nothing_else(agent: Any, join: Join) -> None:
    await agent.tasks("q").put(1)
    jetstream = await agent._jetstream()
    config = (await jetstream.api("STREAM.INFO.aikoryu-default-tasks"))["config"]
    await jetstream.api("STREAM.UPDATE.aikoryu-default-tasks", {**config, "max_bytes": 1 << 30})
    assert await all_of((await join("two")).tasks("q")) == [1]
    await jetstream.api("STREAM.UPDATE.aikoryu-default-tasks", {**config, "discard_new_per_subject": False})
    with pytest.raises(Refused, match="is there, but discard_new_per_subject is"):
        await (await join("three")).tasks("q").put(2)


async def test_on_a_bus_without_jetstream_the_first_use_says_so() -> None:
    agent = Coordination(MemoryBus().connect(), Subjects())
    for use in (agent.tasks("q").put(1), agent.shared("s").get("a"), agent.elect("desk").campaign()):
        with pytest.raises(Unavailable):
            await use
    await agent.close()


async def test_nothing_is_claimed_after_the_end(agent: Any) -> None:
    await agent.close()
    with pytest.raises(Closed):
        async with agent.tasks("q").claim():
            pass


# --- failing --------------------------------------------------------------------------------------------------------


async def failing(queue: Any, attempt: int) -> None:
    async with queue.claim(timeout_s=5) as task:
        assert task.attempt == attempt
        raise ZeroDivisionError(f"no. {attempt}")


async def test_a_task_that_fails_comes_again_and_is_given_up_in_the_end(agent: Any) -> None:
    queue = agent.tasks("q", max_attempts=3, retry_s=0.01)
    await queue.put("bad", id="b")
    with capture_logs() as logs:
        for attempt in (1, 2, 3):
            with pytest.raises(ZeroDivisionError):
                await failing(queue, attempt)
    assert [line["event"] for line in logs] == ["task given up"]
    assert await all_of(queue, 0.1) == []
    assert await dead_of(queue) == [("b", "bad", "ZeroDivisionError: no. 3", 3)]
    assert await dead_of(agent.tasks("other")) == []
    counts = queue.counts
    assert (counts.claimed, counts.repeated, counts.failed, counts.buried, counts.done) == (3, 2, 3, 1, 0)
    await queue.put("good", id="b")
    assert await all_of(queue) == ["good"]


async def test_a_task_rests_after_a_failure(agent: Any) -> None:
    queue = agent.tasks("q", retry_s=60)
    await queue.put(1)
    async with queue.claim(timeout_s=0) as task:
        await task.fail("later, please")
    assert await all_of(queue, 0.05) == []
    assert (queue.counts.failed, queue.counts.done) == (1, 0)


async def test_a_task_that_is_given_back_or_whose_holder_is_cancelled_goes_to_the_next(agent: Any) -> None:
    queue = agent.tasks("q")
    await queue.put(1)
    async with queue.claim(timeout_s=0) as task:
        await task.give_back()
        await task.done()
    inside = asyncio.Event()

    async def hold() -> None:
        async with queue.claim(timeout_s=5):
            inside.set()
            await asyncio.Event().wait()

    holder = asyncio.create_task(hold())
    async with asyncio.timeout(10):
        await inside.wait()
        holder.cancel()
        await asyncio.gather(holder, return_exceptions=True)
        async with queue.claim() as task:
            assert (task.message, task.attempt) == (1, 3)
    assert (queue.counts.given_back, queue.counts.done) == (2, 1)


async def test_what_is_no_task_of_the_queue_is_given_up_at_once(agent: Any) -> None:
    queue = agent.tasks("q", Order)
    await agent.tasks("q").put("no order")
    await queue.put(Order("tea"))
    assert await all_of(queue) == [Order("tea")]
    ((_, message, reason, attempts),) = await dead_of(queue)
    assert (message, attempts) == ("no order", 1)
    assert "it is no task of this queue" in reason


# --- holders that fall silent ---------------------------------------------------------------------------------------


async def test_three_workers_killed_with_tasks_in_hand_lose_none(agent: Any, spawn: Spawn) -> None:
    queue = agent.tasks("work", ack_wait_s=1)
    put = [await queue.put(number) for number in range(30)]
    workers = [await spawn() for _ in range(3)]
    held = []
    for worker in workers:
        says, id_ = await worker.ask("claim", 1)
        assert says == "claimed"
        held.append(id_)
    assert len(set(held)) == 3
    done: list[str] = []
    for worker in workers:
        await worker.kill()
    async with asyncio.timeout(20):
        while len(done) < 30:
            async with queue.claim() as task:
                done.append(task.id)
                assert task.attempt == (2 if task.id in held else 1)
    assert sorted(done) == sorted(put)
    assert (queue.counts.repeated, queue.counts.done) == (3, 30)
    assert await all_of(queue, 0.1) == []


async def test_a_task_whose_holders_all_fall_silent_is_given_up(agent: Any) -> None:
    queue = agent.tasks("q", ack_wait_s=0.2, max_attempts=1)
    await queue.put(1, id="one")
    floor = await agent._floor()
    await queue._consumer()
    message = await floor.claims.take(queue._address(floor), queue._consumer, 5)  # and never a word again
    assert message.data == b"\x01"
    assert await all_of(queue, 0.5) == []
    assert [(each.id, each.attempts) for each in await dead_of(queue)] == [("one", 1)]


async def test_a_holder_that_works_long_keeps_its_task(agent: Any, join: Join) -> None:
    queue, other = agent.tasks("q", ack_wait_s=0.4), (await join("two")).tasks("q", ack_wait_s=0.4)
    await queue.put(1)
    async with queue.claim() as task:
        assert await all_of(other, 1.2) == []
        assert task.held
        task.check()
    assert (queue.counts.done, other.counts.claimed) == (1, 0)


@pytest.mark.parametrize("end", [("give_back",), ("fail", "too late")], ids=lambda end: end[0])
async def test_a_holder_that_was_cut_off_knows_it_and_takes_nothing_from_the_next(
    agent: Any, join: Join, end: tuple[str, ...]
) -> None:
    queue = agent.tasks("q", ack_wait_s=0.5, retry_s=0)
    other = (await join("two")).tasks("q", ack_wait_s=0.5, retry_s=0)
    await queue.put(1)
    async with asyncio.timeout(20):
        late = await queue._next(None)
        agent.clock.shift_s = 3600.0  # the process was paused
        assert "no renewal" in await late.lost()
        with pytest.raises(TaskLost, match="may have gone to another"):
            late.check()
        async with other.claim() as task:
            assert task.attempt == 2
            what, *said = end
            await getattr(late, what)(*said)
            assert await all_of(other, 0.1) == []
            assert task.held
    assert (other.counts.repeated, other.counts.done) == (1, 1)


@pytest.mark.parametrize("ends", ["give_back", "fail"])
async def test_a_holder_that_lost_its_task_and_has_done_it_has_done_it(agent: Any, join: Join, ends: str) -> None:
    queue, other = agent.tasks("q", ack_wait_s=0.5), (await join("two")).tasks("q", ack_wait_s=0.5)
    await queue.put(1)
    async with asyncio.timeout(20):
        late = await queue._next(None)
        agent.clock.shift_s = 3600.0
        await late.lost()
        second = await other._next(None)
        await late.done()
        await getattr(second, ends)(*(["it failed"] if ends == "fail" else []))
    assert await all_of(other, 0.2) == []
    assert (queue.counts.done, queue.counts.late) == (1, 1)


# --- the server, the connection -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_who_waits_while_the_server_restarts_gets_what_comes_after(
    agent: Any, join: Join, server: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    monkeypatch.setattr(claims, "PULL_S", 3600.0)  # nothing but the connection's return has it asked again
    queue, putter = agent.tasks("q"), (await join("two")).tasks("q")
    await putter.put("before")

    async def work() -> Any:
        async with queue.claim() as task:
            return task.message

    assert await work() == "before"
    waiting = asyncio.create_task(work())
    await eventually(lambda: waited(agent) == 1)
    await server.restart(kill=kill)
    async with asyncio.timeout(15):
        await putter.put("after")
        assert await waiting == "after"


async def test_a_consumer_that_somebody_deleted_is_made_again(agent: Any) -> None:
    queue = agent.tasks("q")
    assert await all_of(queue) == []
    await (await agent._jetstream()).api("CONSUMER.DELETE.aikoryu-default-tasks.q")
    await queue.put(1)
    async with queue.claim(timeout_s=5) as task:
        assert task.message == 1


async def test_no_task_comes_to_claims_that_were_cancelled(agent: Any, join: Join, eventually: Any) -> None:
    queue, other = agent.tasks("q"), (await join("two")).tasks("q")
    waiting = [asyncio.create_task(all_of(queue, 60)) for _ in range(MAX_ATTEMPTS + 1)]
    await eventually(lambda: waited(agent) == len(waiting))
    await agent._floor._made[0].pipeline.drain()
    await agent.connection.flush()
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    claims_ = agent._floor._made[0].claims
    await eventually(lambda: not claims_._closing)
    assert claims_._pulls == []
    await other.put(1)
    async with other.claim(timeout_s=5) as task:
        assert task.attempt == 1
    assert queue.counts.claimed == 0


async def test_a_task_on_its_way_to_who_waits_no_more_is_given_back_at_once(
    agent: Any, join: Join, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, other = agent.tasks("q"), (await join("two")).tasks("q")
    go = asyncio.Event()
    close = claims.Pull.close

    async def close_later(pull: claims.Pull) -> None:
        await go.wait()
        await close(pull)

    monkeypatch.setattr(claims.Pull, "close", close_later)
    waiting = asyncio.create_task(all_of(queue, 60))
    await eventually(lambda: waited(agent) == 1)
    await agent._floor._made[0].pipeline.drain()
    await agent.connection.flush()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await other.put(1)
    async with other.claim(timeout_s=5) as task:
        assert task.attempt == 2
    go.set()


@pytest.mark.parametrize("kept", [0, 2])
async def test_done_is_said_until_the_server_has_heard(agent: Any, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr(task_module, "RETRY_S", 0.01)
    queue = agent.tasks("q")
    await queue.put(1)
    jetstream = await agent._jetstream()
    replies, said = jetstream.replies, []

    async def deaf(subject: str, payload: bytes, *more: Any, **how: Any) -> Any:
        if payload == b"+ACK":
            said.append(subject)
            if len(said) <= kept:
                raise NoAnswer("lost by the test")
        async with aclosing(replies(subject, payload, *more, **how)) as answers:
            async for answer in answers:
                yield answer

    monkeypatch.setattr(jetstream, "replies", deaf)
    async with queue.claim(timeout_s=0):
        pass
    assert len(said) == kept + 1
    assert await all_of(queue) == []


async def test_who_has_done_a_task_hears_that_the_server_did_not(agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module, "PATIENCE_S", 0.1)
    queue = agent.tasks("q")
    await queue.put(1)
    with pytest.raises((NoAnswer, Unavailable)):
        async with queue.claim(timeout_s=0):
            await (await agent._jetstream()).api("STREAM.DELETE.aikoryu-default-tasks")
    assert queue.counts.done == 0
