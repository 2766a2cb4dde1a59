"""Snapshots on a real server: whole or not there, in bounded memory, and gone when a later one takes their place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from aikoryu.bus import snapshots as module
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.errors import TooLarge
from aikoryu.bus.jetstream import JetStream, NoAnswer, Stored, Unavailable
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.pipeline import Done, Full, Pipeline
from aikoryu.bus.snapshots import Incomplete, Snapshots, snapshot_stream
from aikoryu.bus.subjects import Subjects

SUBJECTS = Subjects()
STREAM = SUBJECTS.stream("snapshot")
PARTS = [b"a" * 1000, b"", b"b" * 70_000, b"c"]


class Rig:
    """A connection, and snapshots over it."""

    def __init__(self, jetstream: JetStream, pipeline: Pipeline, snapshots: Snapshots) -> None:
        self.jetstream = jetstream
        self.pipeline = pipeline
        self.snapshots = snapshots

    async def read(self, name: str, id_: str) -> list[bytes]:
        async with aclosing(self.snapshots.get(name, id_)) as parts:
            return [part async for part in parts]

    async def messages(self) -> int:
        """How many the stream has."""
        info = await self.jetstream.api(f"STREAM.INFO.{STREAM}")
        return int(info["state"]["messages"])

    async def delete(self, subject: str) -> None:
        """Take a message out of the stream."""
        await self.jetstream.api(f"STREAM.PURGE.{STREAM}", {"filter": f"{SUBJECTS.kept('snapshot')}.{subject}"})


@pytest.fixture
async def rig(start_server: Callable[..., Awaitable[Any]]) -> AsyncIterator[Rig]:
    server = await start_server()
    connection = await NatsConnection.open(ConnectOptions(server.url))
    async with JetStream(connection) as jetstream, Pipeline(connection) as pipeline:
        yield Rig(jetstream, pipeline, await Snapshots.open(jetstream, pipeline, SUBJECTS))
    await connection.close()


async def counted(parts: list[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(0)
        yield part


async def test_what_is_put_is_read_in_parts(rig: Rig) -> None:
    first = await rig.snapshots.put("context.a", PARTS)
    second = await rig.snapshots.put("context.a", counted(PARTS[::-1]))
    nothing = await rig.snapshots.put("context.b", [])
    assert await rig.read("context.a", first) == PARTS
    assert await rig.read("context.a", second) == PARTS[::-1]
    assert await rig.read("context.b", nothing) == []
    await Snapshots.open(rig.jetstream, rig.pipeline, SUBJECTS)  # the stream is there
    with pytest.raises(ValueError, match="snapshot 'a b'"):
        await rig.snapshots.put("a b", PARTS)


async def test_more_parts_than_the_server_hands_out_at_once(rig: Rig) -> None:
    parts = [b"%d" % number for number in range(600)]
    assert await rig.read("a", await rig.snapshots.put("a", parts)) == parts


async def test_parts_on_their_way_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_FLIGHT_BYTES", 2500)
    under_way, most, publish = 0, 0, rig.pipeline.publish

    def observed(subject: str, payload: bytes, done: Done, headers: Any = None) -> None:
        nonlocal under_way, most

        def came(error: Any) -> None:
            nonlocal under_way
            under_way -= len(payload)
            done(error)

        under_way += len(payload)
        most = max(most, under_way)
        publish(subject, payload, came, headers)

    monkeypatch.setattr(rig.pipeline, "publish", observed)
    parts = [bytes(1000)] * 20 + [bytes(5000)] * 2
    assert await rig.read("a", await rig.snapshots.put("a", parts)) == parts
    assert most == 5000, "one part alone may be larger"


async def test_others_have_their_turn_between_parts(rig: Rig) -> None:
    turns, seen = 0, list[int]()

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def parts() -> Iterator[bytes]:
        for _ in range(10):
            seen.append(turns)
            yield b"x"

    turning = asyncio.create_task(turn())
    await rig.snapshots.put("a", parts())
    turning.cancel()
    assert len(set(seen)) == 10


async def test_dropping_leaves_one_and_what_is_younger(rig: Rig) -> None:
    older, kept, younger = [await rig.snapshots.put("a", PARTS) for _ in range(3)]
    other = await rig.snapshots.put("a.b", PARTS)
    await rig.snapshots.drop("a", kept)
    with pytest.raises(Incomplete, match="is not there"):
        await rig.read("a", older)
    assert [await rig.read("a", id_) for id_ in (kept, younger)] == [PARTS, PARTS]
    assert await rig.read("a.b", other) == PARTS
    await rig.snapshots.drop("a", older)
    assert await rig.messages() == 3 * (len(PARTS) + 1), "who comes late with a snapshot of the past drops nothing"


async def test_dropping_what_precedes_the_first_message_deletes_nothing(rig: Rig) -> None:
    first = await rig.snapshots.put("a", PARTS)
    await rig.snapshots.drop("a", first)
    assert await rig.read("a", first) == PARTS


@pytest.mark.parametrize("part", ["0", "2", "3", "end"])
async def test_a_snapshot_without_one_of_its_messages_is_told(rig: Rig, part: str) -> None:
    id_ = await rig.snapshots.put("a", PARTS)
    await rig.delete(f"a.{id_}.{part}")
    with pytest.raises(Incomplete, match="is not there" if part == "end" else f"part {part} of 4 is gone"):
        await rig.read("a", id_)


async def test_a_part_that_was_changed_is_told(rig: Rig) -> None:
    root = f"{SUBJECTS.kept('snapshot')}.a"
    id_ = await rig.snapshots.put("a", [b"one"])
    end = await rig.jetstream.last(STREAM, f"{root}.{id_}.end")
    assert end is not None
    await rig.jetstream.publish(f"{root}.forged.0", b"two")
    await rig.jetstream.publish(f"{root}.forged.end", end.data)
    with pytest.raises(Incomplete, match="its checksum differs"):
        await rig.read("a", "forged")


async def test_a_part_that_did_not_arrive_is_asked_for_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    id_ = await rig.snapshots.put("a", PARTS)
    scan, dropped = rig.jetstream.scan, list[str]()

    async def lossy(stream: str, subject: str, sequence: int) -> Any:
        async with aclosing(scan(stream, subject, sequence)) as found:
            async for stored in found:
                if stored.subject[-2:] in (".1", ".3") and stored.subject not in dropped:
                    dropped.append(stored.subject)
                else:
                    yield stored

    monkeypatch.setattr(rig.jetstream, "scan", lossy)
    assert await rig.read("a", id_) == PARTS
    assert len(dropped) == 2


async def test_a_replica_that_stays_behind_ends_the_reading(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.02)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    id_ = await rig.snapshots.put("a", PARTS)

    async def behind(stream: str, subject: str, sequence: int) -> Any:
        for stored in list[Stored]():
            yield stored

    monkeypatch.setattr(rig.jetstream, "scan", behind)
    with pytest.raises(NoAnswer, match="no replica has part 0 yet"):
        await rig.read("a", id_)


async def test_a_put_that_fails_leaves_nothing(rig: Rig) -> None:
    with pytest.raises(TooLarge):
        await rig.snapshots.put("a", [*PARTS, bytes(2 << 20), b"more"])
    assert await rig.messages() == 0

    async def fails() -> AsyncIterator[bytes]:
        yield b"one"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await rig.snapshots.put("a", fails())
    assert await rig.messages() == 0
    config = (await rig.jetstream.api(f"STREAM.INFO.{STREAM}"))["config"]
    await rig.jetstream.api(f"STREAM.UPDATE.{STREAM}", {**config, "max_bytes": 10_000})
    with pytest.raises(Full):
        await rig.snapshots.put("a", PARTS)
    assert await rig.messages() == 0


async def test_a_put_that_is_cancelled_leaves_nothing(rig: Rig) -> None:
    begun, closed = asyncio.Event(), asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            begun.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    putting = asyncio.create_task(rig.snapshots.put("a", endless()))
    await begun.wait()
    putting.cancel()
    await asyncio.wait({putting})
    assert putting.cancelled()
    assert closed.is_set()
    assert await rig.messages() == 0


async def test_without_its_stream_nothing_is_stored(rig: Rig) -> None:
    await rig.jetstream.api(f"STREAM.DELETE.{STREAM}")
    with pytest.raises(Unavailable):
        await rig.snapshots.put("a", PARTS)
    assert snapshot_stream(SUBJECTS)["name"] == STREAM
