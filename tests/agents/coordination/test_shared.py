"""Shared values on a real server: who may write, what a lost answer leaves, and what a watcher hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from aikoryu.agents.coordination import Change, Conflict, Entry, Fenced, shared
from aikoryu.agents.coordination.streams import MARKER_S
from aikoryu.bus import bucket as bucket_module
from aikoryu.bus.errors import BadParameter, BadValue
from aikoryu.bus.jetstream import NoAnswer

Join = Callable[..., Awaitable[Any]]


@pytest.fixture
def hints_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a change is woken by word of it, or not at all."""
    monkeypatch.setattr(bucket_module, "LOOK_AGAIN_S", 3600.0)


class Order(msgspec.Struct):
    item: str
    count: int


# --- reading and writing --------------------------------------------------------------------------------------------


async def test_a_value_is_read_as_it_was_written(agent: Any) -> None:
    store = agent.shared("s")
    assert await store.get("a.b") is None
    values: tuple[Any, ...] = (7, None, "text", b"bytes", [1, {"x": 2.5}], {})
    for value in values:
        revision = await store.put("a.b", value)
        assert await store.get("a.b") == Entry(value, revision)


async def test_stores_have_keys_and_types_of_their_own(agent: Any) -> None:
    orders, plain = agent.shared("orders", Order), agent.shared("plain")
    await orders.put("a", Order("tea", 2))
    assert await plain.get("a") is None
    value, _ = await orders.get("a")
    assert value == Order("tea", 2)
    await agent.shared("orders").put("b", "no order")
    with pytest.raises(BadValue, match="orders: the value of 'b' is of another type"):
        await orders.get("b")
    with pytest.raises(BadValue, match="cannot be written"):
        await plain.put("a", object())
    for name in ("a.b", "a b", ""):
        with pytest.raises(BadParameter):
            agent.shared(name)
    for key in ("a b", "*", "", "a..b"):
        with pytest.raises(ValueError, match="key"):
            await plain.put(key, 1)


async def test_keys_are_those_that_have_a_value(agent: Any) -> None:
    store, other = agent.shared("s"), agent.shared("t")
    assert await store.keys() == []
    for key in ("b", "a.1", "a.2", "c"):
        await store.put(key, key)
    await other.put("d", 1)
    await store.delete("c")
    assert await store.keys() == ["b", "a.1", "a.2"]
    assert await store.keys("a.*") == ["a.1", "a.2"]
    assert await store.keys("b") == ["b"]
    with pytest.raises(BadParameter, match="tokens separated by dots"):
        await store.keys("a.>.b")


async def test_more_keys_than_one_answer_has_are_all_found(agent: Any) -> None:
    store = agent.shared("s")
    await asyncio.gather(*(store.put(f"k.{number}", number) for number in range(600)))
    assert sorted(int(key.removeprefix("k.")) for key in await store.keys()) == list(range(600))


# --- compare and set ------------------------------------------------------------------------------------------------


async def test_an_update_of_a_revision_that_is_gone_changes_nothing(agent: Any) -> None:
    store = agent.shared("s")
    first = await store.create("a", 1)
    second = await store.update("a", 2, first)
    with pytest.raises(Conflict, match=f"'a' is at revision {second}, not {first}: read it") as conflict:
        await store.update("a", 3, first)
    assert conflict.value.revision == second
    with pytest.raises(Conflict):
        await store.create("a", 3)
    with pytest.raises(Conflict):
        await store.delete("a", first)
    with pytest.raises(Conflict):
        await store.update("b", 3, 9)
    assert await store.get("a") == Entry(2, second)
    await store.delete("a", second)
    await store.delete("a")
    with pytest.raises(Conflict):
        await store.update("a", 3, second)
    assert await store.create("a", 4) > second


async def test_of_many_that_create_at_once_one_does(join: Join) -> None:
    agents = [await join(f"a{number}") for number in range(5)]
    made = await asyncio.gather(
        *(agent.shared("s").create("a", (agent._name, turn)) for agent in agents for turn in range(10)),
        return_exceptions=True,
    )
    (revision,) = [each for each in made if isinstance(each, int)]
    assert all(isinstance(each, int | Conflict) for each in made)
    assert (await agents[0].shared("s").get("a")).revision == revision


async def test_no_update_is_lost_among_many_that_count(join: Join) -> None:
    agents = [await join() for _ in range(4)]
    await agents[0].shared("s").create("count", 0)

    async def count(store: Any) -> None:
        for _ in range(10):
            while True:
                value, revision = await store.get("count")
                try:
                    await store.update("count", value + 1, revision)
                    break
                except Conflict:
                    continue

    async with asyncio.timeout(20):
        await asyncio.gather(*(count(agent.shared("s")) for agent in agents))
    assert (await agents[0].shared("s").get("count")).value == 40


async def test_puts_at_once_all_get_in(join: Join) -> None:
    agents = [await join() for _ in range(4)]
    revisions = await asyncio.gather(*(agent.shared("s").put("a", number) for number, agent in enumerate(agents)))
    assert len(set(revisions)) == 4
    value, revision = await agents[0].shared("s").get("a")
    assert (revision, revisions[value]) == (max(revisions), max(revisions))


# --- time to live ---------------------------------------------------------------------------------------------------


async def gone(store: Any, key: str) -> None:
    async with asyncio.timeout(5), aclosing(store.watch(key)) as changes:
        async for change in changes:
            if change.deleted:
                return


async def test_trap_14_an_update_keeps_the_time_to_live_and_a_put_says_its_own(agent: Any) -> None:
    store = agent.shared("s")
    revision = await store.create("kept", 1, ttl_s=1)
    await store.update("kept", 2, revision)
    revision = await store.create("given", 1)
    await store.update("given", 2, revision, ttl_s=1)
    await store.put("stays", 1, ttl_s=1)
    await store.put("stays", 2)
    await asyncio.gather(gone(store, "kept"), gone(store, "given"))
    assert await store.keys() == ["stays"]


async def test_trap_14_what_expired_is_told_and_can_be_made_again(agent: Any) -> None:
    store = agent.shared("s")
    await store.create("a", 1, ttl_s=1)
    await gone(store, "a")
    assert await store.get("a") is None
    with pytest.raises(Conflict):
        await store.update("a", 2, 1)
    await store.create("a", 2)
    with pytest.raises(Conflict):
        await store.create("a", 3)


@pytest.mark.parametrize("ttl_s", [0, -1, 1.5, True])
async def test_a_time_to_live_that_the_server_does_not_have_is_refused(agent: Any, ttl_s: Any) -> None:
    with pytest.raises(BadParameter, match="whole seconds, 1 or more"):
        await agent.shared("s").put("a", 1, ttl_s=ttl_s)


# --- fencing --------------------------------------------------------------------------------------------------------


async def test_who_has_a_lesser_token_than_the_last_writer_is_refused(agent: Any) -> None:
    store = agent.shared("s")
    await store.put("a", "free")
    await store.put("a", "five", token=5)
    revision = await store.put("a", "five again", token=5)
    await store.update("a", "seven", revision, token=7)
    revision = (await store.get("a")).revision
    for token in (5, 6, 0):
        for write in (
            store.put("a", "late", token=token),
            store.update("a", "late", revision, token=token),
            store.delete("a", token=token),
        ):
            with pytest.raises(Fenced, match=f"written with token 7, after {token or 'none'}: stop") as fenced:
                await write
            assert fenced.value.token == 7
    assert await store.get("a") == Entry("seven", revision)


async def test_the_fence_outlives_what_it_fenced(agent: Any) -> None:
    store = agent.shared("s")
    await store.put("a", 1, token=5)
    await store.delete("a", token=6)
    await store.delete("b", token=6)
    for key in ("a", "b"):
        assert await store.get(key) is None
        with pytest.raises(Fenced):
            await store.create(key, 2, token=5)
        stored = await (await store._bucket()).read(f"s.{key}")
        assert "Nats-TTL" not in stored.headers
        await store.create(key, 3, token=6)
    with pytest.raises(BadParameter, match="ttl_s or a token, not both"):
        await store.put("a", 1, ttl_s=1, token=7)


# --- answers that are lost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", ["a", "r", "aa", "ra", "ar"])
async def test_a_write_whose_answer_is_lost_is_there_once(agent: Any, faults: str) -> None:
    store = agent.shared("s")
    first = await store.create("a", 1)
    await agent.deaf(faults)
    second = await store.update("a", 2, first)
    assert (await store.get("a"), second) == (Entry(2, second), first + 1)


async def test_a_write_that_was_perhaps_overwritten_is_not_repeated(agent: Any, join: Join) -> None:
    store, other = agent.shared("s"), (await join("two")).shared("s")
    await store.put("a", 1)
    await agent.deaf("a", lambda: other.put("a", "other"))
    with pytest.raises(NoAnswer, match="may have been written, and then overwritten: read it"):
        await store.put("a", 2)
    assert (await store.get("a")).value == "other"


async def test_a_write_that_nobody_answers_ends_in_time(agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "PATIENCE_S", 0.2)
    monkeypatch.setattr(shared, "RETRY_S", 0.01)
    store = agent.shared("s")
    await store.put("a", 1)
    await agent.deaf("r" * 1000)
    with pytest.raises(NoAnswer, match="may have been written, or be yet: read it"):
        await store.put("a", 2)


# --- watching -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hints_only")
async def test_a_watcher_hears_what_is_there_and_each_change(agent: Any, join: Join) -> None:
    store, other = agent.shared("s"), (await join("two")).shared("s")
    one = await store.put("a", 1)
    await store.put("b", 1)
    await store.delete("b")
    async with asyncio.timeout(10), aclosing(store.watch()) as changes:
        assert await anext(changes) == Change("a", 1, one, deleted=False)
        two = await other.put("a", 2)
        assert await anext(changes) == Change("a", 2, two, deleted=False)
        three = await other.put("c.d", 3)
        assert await anext(changes) == Change("c.d", 3, three, deleted=False)
        await other.delete("a")
        assert await anext(changes) == Change("a", None, three + 1, deleted=True)
    async with asyncio.timeout(10), aclosing(other.watch("c.*")) as changes:
        assert (await anext(changes)).key == "c.d"
        await store.put("a", 4)
        await store.put("c.e", 5)
        assert (await anext(changes)).key == "c.e"


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_nothing_is_missed_over_a_restart_of_the_server(agent: Any, join: Join, server: Any, kill: bool) -> None:
    writer = (await join("writer")).shared("s")
    watching = asyncio.create_task(watch_until(agent.shared("s"), "last"))
    for number in range(60):
        if number in (20, 40):
            restart = asyncio.create_task(server.restart(kill=kill))
        await writer.put(f"k.{number}", number)
        if number % 10 == 5:
            await writer.delete(f"k.{number}")
        await writer.put("counter", number)
    await restart
    await writer.put("last", True)
    changes = await watching
    values = {change.key: change.value for change in changes}
    expected = {f"k.{number}": number for number in range(60) if number % 10 != 5}
    assert {key: value for key, value in values.items() if value is not None} == {
        **expected,
        "counter": 59,
        "last": True,
    }
    for key in values:
        revisions = [change.revision for change in changes if change.key == key]
        assert revisions == sorted(set(revisions))
    assert [change.value for change in changes if change.key == "counter"][-1] == 59


async def watch_until(store: Any, last: str) -> list[Change[Any]]:
    seen = []
    async with asyncio.timeout(30), aclosing(store.watch()) as changes:
        async for change in changes:
            seen.append(change)
            if change.key == last:
                return seen
    raise AssertionError("the watch ended")


@pytest.mark.usefixtures("hints_only")
async def test_hints_that_were_lost_with_the_connection_are_made_up_for(agent: Any, join: Join) -> None:
    store, writer = agent.shared("s"), (await join("writer")).shared("s")
    async with asyncio.timeout(10), aclosing(store.watch()) as changes:
        await writer.put("a", 1)
        assert (await anext(changes)).value == 1
        (hints,) = [each for each in agent.connection._subscriptions if ".shared." in each.subject]
        await hints.client.silence(hints._inner)
        await writer.put("a", 2)
        await writer.put("b", 3)
        agent.connection._client._abort()
        assert [(await anext(changes)).value, (await anext(changes)).value] == [2, 3]


async def test_what_was_deleted_and_forgotten_meanwhile_is_told(agent: Any, join: Join) -> None:
    store, writer = agent.shared("s"), (await join("writer")).shared("s")
    await store.put("stays", 1)
    revision = await store.put("goes", 1)
    async with asyncio.timeout(10), aclosing(store.watch()) as changes:
        assert [(await anext(changes)).key, (await anext(changes)).key] == ["stays", "goes"]
        bucket = await writer._bucket()
        await bucket.jetstream.api(f"STREAM.PURGE.{bucket.stream}", {"filter": bucket.subject("s.goes")})
        agent.clock.shift_s += MARKER_S
        await writer.put("new", 1)
        told = [await anext(changes), await anext(changes)]
    assert told == [Change("new", 1, revision + 1, deleted=False), Change("goes", None, revision, deleted=True)]


async def test_a_message_that_is_lost_on_its_way_is_asked_for_again(
    agent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = agent.shared("s")
    for key in "abcd":
        await store.put(key, 1)
    jetstream = await agent._jetstream()
    lost: list[Any] = []
    scan = jetstream.scan

    async def lossy(*query: Any) -> AsyncIterator[Any]:
        async with aclosing(scan(*query)) as found:
            async for stored in found:
                if stored.subject.endswith(".s.b") and not lost:
                    lost.append(stored)
                else:
                    yield stored

    monkeypatch.setattr(jetstream, "scan", lossy)
    assert await store.keys() == ["a", "b", "c", "d"]
    assert lost
