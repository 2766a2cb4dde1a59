"""The front between the in-memory bus and the in-process engine: what becomes of frames, rows and bad input."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from aikoryu.bus.columns import Array, Column, pack
from aikoryu.bus.service import Service
from aikoryu.gpu import admission, front
from aikoryu.gpu.plan import Limits

StartRig = Callable[..., Awaitable[Any]]


def x(rows: int, width: int = 4, first: int = 0) -> Array:
    return np.arange(first, first + rows * width, dtype=np.float32).reshape(rows, width)


class TestBatching:
    async def test_frames_that_arrive_together_form_one_batch(self, rig: Any) -> None:
        callers = [await rig.caller() for _ in range(5)]
        for n, caller in enumerate(callers):
            await caller.send("echo", {"x": x(n + 1, first=100 * n)})
        await rig.settle()
        assert rig.batches() == [15]
        for n, caller in enumerate(callers):
            (reply,) = caller.replies
            assert reply.last
            assert (reply.by.engine, reply.by.batch) == ("cpu", 15)
            np.testing.assert_array_equal(
                [row["x"] for row in caller.outcome(1, n + 1).values()], x(n + 1, first=100 * n)
            )
        rig.assert_idle()

    async def test_texts_of_several_frames_form_one_batch(self, rig: Any) -> None:
        """Offsets of the second frame on are rebased past the data before them."""
        callers = [await rig.caller() for _ in range(3)]
        texts = [["", "één", "b"], ["日本", ""], ["x" * 100]]
        for caller, rows in zip(callers, texts, strict=True):
            await caller.send("test.upper", {"text": rows})
        await rig.settle()
        assert rig.batches() == [6]
        for caller, rows in zip(callers, texts, strict=True):
            outcome = caller.outcome(1, len(rows))
            assert [outcome[row]["text"] for row in range(len(rows))] == [text.upper() for text in rows]
            assert [outcome[row]["length"] for row in range(len(rows))] == [len(text) for text in rows]

    async def test_rows_of_one_frame_are_answered_by_different_batches(self, start_rig: StartRig) -> None:
        rig = await start_rig(Limits(max_rows=4))
        caller = await rig.caller()
        await caller.send("test.scale", {"x": x(10)})
        await rig.settle()
        assert rig.batches() == [4, 4, 2]
        assert [(reply.at, reply.last) for reply in caller.replies] == [
            ([(0, 4)], False),
            ([(4, 4)], False),
            ([(8, 2)], True),
        ]
        np.testing.assert_array_equal([caller.outcome(1, 10)[row]["y"] for row in range(10)], 2 * x(10))
        rig.assert_idle()

    async def test_frame_gets_one_reply_a_batch(self, rig: Any) -> None:
        rig.engine.hold = True
        caller = await rig.caller()
        for _ in range(3):
            await caller.send("echo", {"x": x(2)})
        await rig.settle()
        for row in (0, 5):
            await caller.cancel(3, [row])
        rig.engine.release()
        await rig.settle()
        assert [len(caller.answers(id_)) for id_ in (1, 2, 3)] == [1, 1, 1]

    async def test_rows_collect_while_every_slot_is_taken(self, start_rig: StartRig) -> None:
        rig = await start_rig(slots=1)
        rig.engine.hold = True
        caller = await rig.caller()
        for _ in range(6):
            await caller.send("echo", {"x": x(1)})
            await rig.settle()
        assert rig.batches() == [1]
        rig.engine.release()
        await rig.settle()
        assert rig.batches() == [1, 5]
        assert all(caller.answers(id_)[0].last for id_ in range(1, 7))

    async def test_parameters_that_mean_the_same_share_a_batch(self, rig: Any) -> None:
        caller = await rig.caller()
        await caller.send("test.scale", {"x": x(1)})
        await caller.send("test.scale", {"x": x(1)}, {"factor": 2})
        await caller.send("test.scale", {"x": x(1)}, {"factor": 3.0})
        await rig.settle()
        assert sorted(rig.batches()) == [1, 2]
        assert caller.outcome(3, 1)[0]["y"][1] == 3.0

    async def test_reply_says_how_long_the_rows_queued(self, rig: Any) -> None:
        rig.engine.hold = True
        caller = await rig.caller()
        await caller.send("echo", {"x": x(1)})
        await rig.settle()
        rig.engine.release()
        await rig.settle()
        assert 0 <= caller.replies[0].by.queue_us < 10_000_000
        assert caller.replies[0].by.run_us >= 0

    async def test_frame_sent_again_while_under_way_is_not_run_twice(self, rig: Any) -> None:
        rig.engine.hold = True
        caller = await rig.caller()
        for _ in range(3):
            await caller.send("echo", {"x": x(2)}, id=7)
            await rig.settle()
        rig.engine.release()
        await rig.settle()
        assert rig.batches() == [2]
        assert len(caller.answers(7)) == 1

    async def test_nameless_callers_are_told_apart(self, rig: Any) -> None:
        callers = [await rig.caller() for _ in range(2)]
        request = {"v": 1, "n": 1, "id": 1, "cols": {"x": {"t": "f4", "d": b"\0\0\0\0", "s": [1]}}}
        for caller in callers:
            await caller.publish("echo", msgspec.msgpack.encode(request), 1)
        await rig.settle()
        assert [len(caller.answers(1)) for caller in callers] == [1, 1]

    async def test_person_who_types_json_is_answered_in_json(self, rig: Any) -> None:
        caller = await rig.caller()
        await caller.publish("test.upper", b'{"v": 1, "n": 2, "cols": {"text": ["hi", "refuse"]}}')
        await rig.settle()
        reply = msgspec.json.decode(caller.raw[0])
        assert reply["cols"]["text"]["d"] == ["HI"]
        assert [(error["row"], error["code"]) for error in reply["err"]] == [(1, "bad_value")]

    async def test_look_again_is_one_however_many_frames_come_while_answers_leave_slowly(
        self, rig: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("aikoryu.gpu.front.BACKLOG_BYTES", -1)
        looks = 0
        due = type(rig.service).backlog_bytes

        def backlog(service: Service) -> Any:
            nonlocal looks
            looks += 1
            return due.fget(service)

        monkeypatch.setattr(Service, "backlog_bytes", property(backlog))
        caller = await rig.caller()
        for _ in range(30):
            await caller.send("echo", {"x": x(1)})
            await rig.settle()
        looks = 0
        await asyncio.sleep(0.1)
        assert 1 <= looks <= 25, "every 5 ms, once"
        monkeypatch.undo()
        await asyncio.sleep(0.02)
        assert sum(rig.batches()) == 30


class TestBadRows:
    async def test_refused_row_gets_its_own_error_and_neighbours_are_answered(self, rig: Any) -> None:
        one, two = await rig.caller(), await rig.caller()
        await one.send("test.upper", {"text": ["a", "refuse", "b"]})
        await two.send("test.upper", {"text": ["refuse", "c"]})
        await rig.settle()
        assert rig.batches() == [5]
        outcome = one.outcome(1, 3)
        assert (outcome[0]["text"], outcome[1], outcome[2]["text"]) == ("A", "bad_value", "B")
        outcome = two.outcome(1, 2)
        assert (outcome[0], outcome[1]["text"]) == ("bad_value", "C")
        assert one.replies[0].err[0].msg == "this word is refused"
        rig.assert_idle()

    async def test_row_that_is_not_utf8_gets_its_own_error(self, rig: Any) -> None:
        one, two = await rig.caller(), await rig.caller()
        broken = pack([b"fine", b"\xff\xfe", b"also"])
        broken.t = "utf8"
        await one.send("test.upper", {"text": broken}, n=3)
        await two.send("test.upper", {"text": ["whole"]})
        await rig.settle()
        outcome = one.outcome(1, 3)
        assert (outcome[0]["text"], outcome[1], outcome[2]["text"]) == ("FINE", "bad_value", "ALSO")
        assert "UTF-8" in one.replies[0].err[0].msg
        assert two.outcome(1, 1)[0]["text"] == "WHOLE"

    async def test_frame_with_only_bad_rows_is_answered_whole(self, rig: Any) -> None:
        caller = await rig.caller()
        await caller.send("test.upper", {"text": ["refuse", "refuse"]})
        await rig.settle()
        assert caller.outcome(1, 2) == {0: "bad_value", 1: "bad_value"}
        assert caller.replies[-1].last
        rig.assert_idle()


def column(dtype: str, shape: tuple[int, ...], data: bytes) -> Column:
    return Column(dtype, memoryview(data), shape)


BAD_FRAMES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "dtype": ("test.scale", {"x": np.zeros((2, 3))}, {}, "bad_column"),
    "dtype nobody knows": ("echo", {"x": column("f3", (2,), b"123456")}, {}, "bad_column"),
    "shape": ("test.wrong", {"x": np.zeros((2, 3, 4), np.float32)}, {}, "bad_column"),
    "rank": ("test.careful", {"x": np.zeros((2, 1), np.float32)}, {}, "bad_column"),
    "too few bytes": ("echo", {"x": column("f4", (2, 2), b"\0" * 12)}, {}, "bad_column"),
    "rows": ("echo", {"x": column("f4", (3,), b"\0" * 12)}, {}, "bad_column"),
    "negative shape": ("echo", {"x": column("f4", (2, -1), b"")}, {}, "bad_column"),
    "no shape": ("echo", {"x": column("f4", (), b"\0" * 8)}, {}, "bad_column"),
    "too many dimensions": ("echo", {"x": column("u1", (2, *(1,) * 70), b"ab")}, {}, "bad_column"),
    "huge shape of nothing": ("echo", {"x": column("u1", (2, 0, 1 << 62, 4), b"")}, {}, "bad_column"),
    "large shape of nothing": ("echo", {"x": column("u1", (2, 0, 1 << 40), b"")}, {}, "too_large"),
    "missing column": ("test.scale", {}, {}, "bad_column"),
    "unknown column": ("test.scale", {"x": x(2), "z": x(2)}, {}, "bad_column"),
    "offsets missing": ("test.upper", {"text": column("utf8", (2,), b"ab")}, {}, "bad_column"),
    "offsets falling": (
        "test.upper",
        {"text": Column("utf8", memoryview(b"abc"), None, memoryview(np.array([0, 9, 3], "<u4").tobytes()))},
        {},
        "bad_column",
    ),
    "text for numbers": ("test.scale", {"x": ["a", "b"]}, {}, "bad_column"),
    "parameter type": ("test.scale", {"x": x(2)}, {"factor": "much"}, "bad_parameter"),
    "unknown parameter": ("test.scale", {"x": x(2)}, {"factory": 1.0}, "bad_parameter"),
    "parameter too large": ("test.wrong", {"x": x(2)}, {"how": "x" * 100_000}, "too_large"),
}


class TestBadFrames:
    @pytest.mark.parametrize("what", BAD_FRAMES)
    async def test_bad_frame_gets_a_stable_code_and_neighbours_are_answered(self, rig: Any, what: str) -> None:
        operation, columns, parameters, code = BAD_FRAMES[what]
        good, bad = await rig.caller(), await rig.caller()
        await good.send("echo", {"x": x(1)})
        for _ in range(2):  # twice: admission remembers
            await bad.send(operation, columns, parameters, n=2)
        await good.send("test.upper", {"text": ["a"]})
        await rig.settle()
        for id_ in (1, 2):
            assert bad.outcome(id_, 2) == {0: code, 1: code}
            assert bad.answers(id_)[-1].last
            assert len(bad.answers(id_)[0].err[0].msg) > 20
        assert good.outcome(1, 1)[0]["x"].tolist() == [0, 1, 2, 3]
        assert good.outcome(2, 1)[0]["text"] == "A"
        assert rig.service.rejected == {code: 2}
        rig.assert_idle()

    @pytest.mark.parametrize(
        "bad",
        [
            {"x": column("f4", (2, 2), b"\0" * 12)},
            {"x": column("f4", (2, 2), b"\0" * 20)},
            {"x": column("f4", (4, 2), b"\0" * 16)},
            {"x": column("f4", (1, 2), b"\0" * 8)},
        ],
    )
    async def test_frame_like_one_seen_before_is_checked_all_the_same(self, rig: Any, bad: dict[str, Any]) -> None:
        caller = await rig.caller()
        await caller.send("echo", {"x": x(2, 2)})
        await caller.send("echo", bad, n=2)
        await caller.send("echo", {"x": x(2, 2)})
        await rig.settle()
        assert [caller.codes(id_) for id_ in (1, 2, 3)] == [[], ["bad_column"], []]
        assert rig.batches() == [4]

    async def test_texts_like_those_seen_before_are_checked_all_the_same(self, rig: Any) -> None:
        caller = await rig.caller()
        await caller.send("test.upper", {"text": ["a", "b"]})
        broken = pack(["a", "b"])
        broken.o = memoryview(np.array([0, 7, 2], "<u4").tobytes())
        await caller.send("test.upper", {"text": broken}, n=2)
        await rig.settle()
        assert [caller.codes(id_) for id_ in (1, 2)] == [[], ["bad_column"]]

    async def test_texts_of_many_frames_are_bounded_by_their_bytes(self, start_rig: StartRig) -> None:
        rig = await start_rig(Limits(max_bytes=64 << 10), slab_bytes=256 << 10)
        callers = [await rig.caller() for _ in range(9)]
        for caller in callers:
            await caller.send("test.upper", {"text": ["x" * 15_000] * 2})
        await rig.settle(60)
        assert sum(rig.batches()) == 18
        assert max(rig.batches()) == 4
        assert all(caller.outcome(1, 2)[1]["length"] == 15_000 for caller in callers)

    @pytest.mark.parametrize(
        ("payload", "code"),
        [
            (b"\xc1", "bad_frame"),
            (b"", "bad_frame"),
            (b"{", "bad_frame"),
            (msgspec.msgpack.encode([1, 2, 3]), "bad_frame"),
            (msgspec.msgpack.encode({"v": 1, "n": -1}), "bad_frame"),
            (msgspec.msgpack.encode({"v": 1, "n": 0}), "bad_frame"),
            (msgspec.msgpack.encode({"v": 2, "future": True}), "bad_version"),
            (msgspec.msgpack.encode({"v": 1, "n": 1, "cols": {}}), "bad_column"),
            (
                msgspec.msgpack.encode({"v": 1, "n": 1, "cols": {"x": {"t": "f4", "d": b"1234"}}, "p": 3}),
                "bad_parameter",
            ),
        ],
    )
    async def test_garbage_gets_a_stable_code(self, rig: Any, payload: bytes, code: str) -> None:
        caller = await rig.caller()
        await caller.publish("echo", payload)
        await caller.send("echo", {"x": x(1)})
        await rig.settle()
        bodies = [msgspec.json.decode(raw) if raw[:1] == b"{" else msgspec.msgpack.decode(raw) for raw in caller.raw]
        assert [error["code"] for body in bodies for error in body.get("err", [])] == [code]
        assert len(caller.raw) == 2
        rig.assert_idle()

    async def test_row_larger_than_a_batch_is_too_large(self, start_rig: StartRig) -> None:
        rig = await start_rig(Limits(max_bytes=4096))
        caller = await rig.caller()
        await caller.send("echo", {"x": x(1, 1024)})  # 4 KiB in and 4 KiB out
        await caller.send("echo", {"x": x(1, 512)})
        await rig.settle()
        assert caller.codes(1) == ["too_large"]
        assert caller.codes(2) == []

    async def test_texts_larger_than_a_batch_are_too_large(self, start_rig: StartRig) -> None:
        rig = await start_rig(Limits(max_bytes=4096), slab_bytes=16384)
        caller = await rig.caller()
        await caller.send("test.upper", {"text": ["x" * 100_000]})
        await caller.send("test.upper", {"text": ["x" * 1000]})
        await rig.settle()
        assert caller.codes(1) == ["too_large"]
        assert caller.outcome(2, 1)[0]["length"] == 1000
        rig.assert_idle()

    async def test_answers_larger_than_their_requests_bound_the_batch(self, start_rig: StartRig) -> None:
        """A batch's answer must fit its slab, or rows would fail that had done nothing wrong."""
        rig = await start_rig(Limits(max_bytes=64 << 10), slab_bytes=160 << 10)
        callers = [await rig.caller() for _ in range(10)]
        for caller in callers:
            await caller.send("test.wide", {"text": ["abc"] * 10})
        await rig.settle(60)
        assert sum(rig.batches()) == 100
        assert max(rig.batches()) <= 16
        for caller in callers:
            outcome = caller.outcome(1, 10)
            assert [outcome[row]["y"].tolist() for row in range(10)] == [[3.0] * 1024] * 10

    async def test_batch_that_does_not_fit_its_slab_fails_alone(self, start_rig: StartRig) -> None:
        rig = await start_rig(Limits(max_bytes=64 << 10), slab_bytes=8192)
        caller = await rig.caller()
        await caller.send("echo", {"x": x(3, 1024)})
        await caller.send("test.upper", {"text": ["a"]})
        await rig.settle()
        assert caller.codes(1) == ["operation_failed"]
        assert caller.outcome(2, 1)[0]["text"] == "A"
        rig.assert_idle()

    async def test_lane_explosion_is_busy_and_known_lanes_are_served(self, start_rig: StartRig) -> None:
        rig = await start_rig(Limits(lanes=8), slots=1)
        rig.engine.hold = True
        caller = await rig.caller()
        await caller.send("echo", {"x": x(1, 1)})
        await rig.settle()
        for n in range(20):
            await caller.send("test.scale", {"x": x(1)}, {"factor": float(n)})
        await rig.settle()
        refused = [id_ for id_ in range(2, 22) if caller.codes(id_) == ["busy"]]
        assert len(refused) == 12
        assert all(caller.answers(id_)[0].err[0].retry_ms > 0 for id_ in refused)
        rig.engine.release()
        await rig.settle(60)
        assert all(len(caller.answers(id_)) == 1 for id_ in range(1, 22))
        rig.assert_idle()

    async def test_memory_is_bounded_however_much_is_asked(
        self, start_rig: StartRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(admission, "MAX_REMEMBERED", 10)
        rig = await start_rig(Limits(queue_rows=50, lanes=1000), slots=1)
        rig.engine.hold = True
        caller = await rig.caller()
        for n in range(200):
            await caller.send("test.scale", {"x": x(2)}, {"factor": float(n % 25)})
        await rig.settle()
        assert rig.planner.waiting_rows <= 50
        assert len(rig.service.held) <= 26
        assert len(rig.front._admission._remembered) <= 10
        assert rig.service.rejected["busy"] >= 150
        rig.engine.release()
        await rig.settle(200)
        assert sorted(reply.id for reply in caller.replies) == list(range(1, 201))
        rig.assert_idle()


class TestCallersThatGo:
    async def test_rows_withdrawn_while_they_wait_are_never_run(self, start_rig: StartRig) -> None:
        rig = await start_rig(slots=1)
        rig.engine.hold = True
        caller = await rig.caller()
        await caller.send("echo", {"x": x(1, 1)})
        await rig.settle()
        await caller.send("test.scale", {"x": x(6)})
        await caller.send("test.scale", {"x": x(3)})
        await rig.settle()
        await caller.cancel(2, [0, 3, 3, 99, -1])
        await caller.cancel(3)
        await rig.settle()
        rig.engine.release()
        await rig.settle()
        assert rig.batches() == [1, 4]
        assert sorted(caller.outcome(2, 6)) == [1, 2, 4, 5]
        np.testing.assert_array_equal(caller.outcome(2, 6)[4]["y"], 2 * x(6)[4])
        assert caller.answers(3) == []
        rig.assert_idle()

    async def test_rows_withdrawn_while_they_run_are_marked_and_not_answered(self, rig: Any) -> None:
        rig.engine.hold = True
        one, two = await rig.caller(), await rig.caller()
        await one.send("test.careful", {"x": np.arange(3, dtype=np.float32)})
        await two.send("test.careful", {"x": np.arange(4, dtype=np.float32)})
        await rig.settle()
        await one.cancel(1, [1])
        await two.cancel(1, [0, 3])
        await rig.settle()
        (job,) = rig.engine.jobs
        alive = rig.engine.slabs[job.slab].array(job.alive, np.dtype("?"), (job.rows,))
        assert alive.tolist() == [True, False, True, False, True, True, False]
        rig.engine.release()
        await rig.settle()
        assert {row: float(v["x"]) for row, v in one.outcome(1, 3).items()} == {0: 0, 2: 2}
        assert {row: float(v["x"]) for row, v in two.outcome(1, 4).items()} == {1: 1, 2: 2}
        rig.assert_idle()

    async def test_batch_nobody_waits_for_is_abandoned(self, rig: Any) -> None:
        rig.engine.hold = True
        caller = await rig.caller()
        await caller.send("test.careful", {"x": np.arange(3, dtype=np.float32)})
        await rig.settle()
        await caller.cancel(1)
        await rig.settle()
        rig.engine.release()
        await rig.settle()
        assert caller.replies == []
        rig.assert_idle()

    async def test_split_frame_is_withdrawn_where_it_waits_and_where_it_runs(self, start_rig: StartRig) -> None:
        rig = await start_rig(Limits(max_rows=2), slots=1)
        rig.engine.hold = True
        caller = await rig.caller()
        await caller.send("echo", {"x": x(5)})
        await rig.settle()
        await caller.cancel(1, [1, 2])
        await rig.settle()
        rig.engine.release()
        await rig.settle()
        assert rig.batches() == [2, 2]
        assert sorted(caller.outcome(1, 5)) == [0, 3, 4]
        assert caller.replies[-1].last
        rig.assert_idle()

    async def test_cancel_of_an_unknown_frame_is_ignored(self, rig: Any) -> None:
        caller = await rig.caller()
        await caller.cancel(99, [1])
        await caller.send("echo", {"x": x(1)})
        await rig.settle()
        assert sorted(caller.outcome(1, 1)) == [0]

    async def test_rows_of_a_caller_that_went_away_are_dropped(
        self, start_rig: StartRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(front, "PROBE_S", 0.0)
        rig = await start_rig(slots=1)
        rig.engine.hold = True
        here, gone = await rig.caller(), await rig.caller()
        await gone.send("echo", {"x": x(2, 1)})
        await rig.settle()
        await gone.send("echo", {"x": x(3)})
        await here.send("echo", {"x": x(4)})
        await gone.listening.unsubscribe()
        await rig.settle(40)
        assert rig.planner.waiting_rows == 4
        (running,) = rig.engine.jobs
        assert bytes(rig.engine.slabs[running.slab].view[:2]) == b"\0\0"
        rig.engine.release()
        await rig.settle()
        assert rig.batches() == [2, 4]
        assert sorted(here.outcome(1, 4)) == [0, 1, 2, 3]
        assert gone.replies == []
        rig.assert_idle()

    async def test_nameless_caller_is_never_probed(self, start_rig: StartRig, monkeypatch: pytest.MonkeyPatch) -> None:
        """An empty message would be the answer to a client that knows nothing of probes."""
        monkeypatch.setattr(front, "PROBE_S", 0.0)
        rig = await start_rig(slots=1)
        rig.engine.hold = True
        connection = rig.bus.connect()
        received: list[bytes] = []
        await connection.subscribe("_INBOX.plain", lambda message: received.append(message.data))
        request = {"v": 1, "n": 1, "cols": {"x": {"t": "f4", "d": b"\0\0\0\0", "s": [1]}}}
        for _ in range(2):
            await connection.publish("aikoryu.v1.default.echo", msgspec.msgpack.encode(request), "_INBOX.plain")
            await rig.settle()
        rig.engine.release()
        await rig.settle()
        assert len(received) == 2
        assert all(received)

    async def test_expired_rows_are_dropped_before_they_run(self, start_rig: StartRig) -> None:
        rig = await start_rig(slots=1)
        rig.engine.hold = True
        caller = await rig.caller()
        await caller.send("echo", {"x": x(1, 1)})
        await rig.settle()
        await caller.send("echo", {"x": x(50)}, ttl_ms=1)
        await caller.send("echo", {"x": x(2)})
        await rig.settle()
        deadline = rig.service.held[caller.number, 2].deadline
        while time.monotonic() <= deadline:  # noqa: ASYNC110 - a deadline of 1 ms passes by itself
            await asyncio.sleep(0)
        rig.engine.release()
        await rig.settle()
        assert rig.batches() == [1, 2]
        assert caller.outcome(2, 50) == dict.fromkeys(range(50), "expired")
        assert len(caller.answers(2)) == 1, "one reply for the frame, not one a row"
        assert sorted(caller.outcome(3, 2)) == [0, 1]
        rig.assert_idle()


class TestOperationsThatFail:
    @pytest.mark.parametrize(
        "how",
        ["raises", "shape", "rank", "rows", "dtype", "missing", "bytes", "mixed", "surrogate", "texts", "nothing"],
    )
    async def test_operation_that_does_wrong_fails_its_own_rows(self, rig: Any, how: str) -> None:
        good, bad = await rig.caller(), await rig.caller()
        await bad.send("test.wrong", {"x": x(3)}, {"how": how})
        await good.send("test.wrong", {"x": x(2)})
        await rig.settle()
        assert bad.outcome(1, 3) == dict.fromkeys(range(3), "operation_failed")
        assert len(bad.replies) == 1
        assert "secret detail" not in bad.replies[0].err[0].msg
        assert good.outcome(1, 2)[1]["text"] == "fine"
        rig.assert_idle()

    async def test_operation_says_itself_what_is_wrong(self, rig: Any) -> None:
        caller = await rig.caller()
        await caller.send("test.wrong", {"x": x(1)}, {"how": "raises-a-bus-error"})
        await rig.settle()
        assert [(error.code, error.msg) for error in caller.replies[0].err] == [("error", "as it says")]

    async def test_failed_batch_answers_each_frame_once(self, start_rig: StartRig) -> None:
        rig = await start_rig(slots=1)
        rig.engine.hold = True
        caller = await rig.caller()
        await caller.send("echo", {"x": x(1)})
        await rig.settle()
        await caller.send("test.wrong", {"x": x(5)}, {"how": "raises"})
        await rig.settle()
        await caller.cancel(2, [1, 3])
        await rig.settle()
        rig.engine.release()
        await rig.settle()
        assert caller.outcome(2, 5) == dict.fromkeys([0, 2, 4], "operation_failed")
        assert len(caller.answers(2)) == 1

    async def test_lost_engine_runs_again_what_it_had(self, start_rig: StartRig) -> None:
        rig = await start_rig(slots=1)
        rig.engine.hold = True
        caller = await rig.caller()
        await caller.send("echo", {"x": x(2)})
        await rig.settle()
        await caller.send("echo", {"x": x(3)})
        await rig.settle()
        rig.engine.lose()
        await rig.settle()
        assert caller.replies == []
        assert rig.batches() == [2, 2], "what it had, before what waited"
        rig.engine.release()
        await rig.settle()
        assert rig.batches() == [2, 2, 3]
        assert sorted(caller.outcome(1, 2)) == [0, 1]
        assert sorted(caller.outcome(2, 3)) == [0, 1, 2]
        assert [reply.by.reason for reply in caller.replies] == ["engine_lost", ""]
        await caller.send("echo", {"x": x(1)})
        await rig.settle()
        assert sorted(caller.outcome(3, 1)) == [0]
        rig.assert_idle()

    async def test_nothing_starts_until_the_engine_is_back(self, rig: Any) -> None:
        caller = await rig.caller()
        on_ready, rig.engine.on_ready = rig.engine.on_ready, lambda: None
        rig.engine.lose()
        await caller.send("echo", {"x": x(1)})
        await rig.settle()
        assert rig.engine.jobs == []
        on_ready()
        await rig.settle()
        assert sorted(caller.outcome(1, 1)) == [0]

    async def test_answer_of_an_engine_given_up_is_ignored(self, rig: Any) -> None:
        rig.engine.hold = True
        caller = await rig.caller()
        await caller.send("echo", {"x": x(1)})
        await rig.settle()
        (job,) = rig.engine.jobs
        rig.engine.lose()
        rig.engine._run(job)
        await rig.settle()
        assert caller.replies == []
        rig.engine.release()
        await rig.settle()
        assert len(caller.replies) == 1
        assert sorted(caller.outcome(1, 1)) == [0]
        rig.assert_idle()


class TestDrain:
    async def test_trap_05_drain_answers_everything_accepted(self, start_rig: StartRig) -> None:
        """A drained subscription has handed over its frames; their batches have yet to run."""
        rig = await start_rig(Limits(max_rows=3), slots=1)
        rig.engine.hold = True
        caller = await rig.caller()
        for _ in range(4):
            await caller.send("echo", {"x": x(4)})
        draining = asyncio.create_task(rig.service.drain(5.0))
        await rig.settle()
        assert not draining.done()
        rig.engine.release()
        assert await draining
        assert all(sorted(caller.outcome(id_, 4)) == [0, 1, 2, 3] for id_ in range(1, 5))
        rig.assert_idle()

    async def test_drain_says_what_it_could_not_finish(self, rig: Any) -> None:
        rig.engine.hold = True
        caller = await rig.caller()
        await caller.send("echo", {"x": x(1)})
        assert not await rig.service.drain(0.0)


async def test_frame_larger_than_the_queue_is_served_by_an_idle_worker(start_rig: StartRig) -> None:
    rig = await start_rig(Limits(queue_rows=50, max_rows=16))
    caller = await rig.caller()
    await caller.send("echo", {"x": x(100)})
    await rig.settle()
    np.testing.assert_array_equal([caller.outcome(1, 100)[row]["x"] for row in range(100)], x(100))
    rig.assert_idle()


async def test_waiting_rows_expire_and_frames_are_refused_while_the_engine_is_down(
    start_rig: StartRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aikoryu.gpu.front.DOWN_LOOK_S", 0.0)
    rig = await start_rig(Limits())
    caller = await rig.caller()
    rig.engine.on_lost()
    await caller.send("echo", {"x": x(2)}, ttl_ms=1)
    for _ in range(5000):
        if caller.replies:
            break
        await asyncio.sleep(0.001)
    assert [error.code for reply in caller.replies for error in reply.err] == ["expired"]
    monkeypatch.setattr("aikoryu.gpu.front.DOWN_S", 0.0)
    await caller.send("echo", {"x": x(1)})
    await rig.settle()
    assert [error.code for error in caller.replies[-1].err] == ["engine_down"]
    rig.engine.on_ready()
    await caller.send("echo", {"x": x(1)})
    await rig.settle()
    assert caller.replies[-1].err == []
    rig.assert_idle()


async def test_client_that_floods_hurts_nobody_else(start_rig: StartRig) -> None:
    """It keeps asking whatever it is told; others are answered whole, and soon, and none of them is told `busy`."""
    rig = await start_rig(Limits(queue_rows=4096, max_rows=256))
    flooding, *others = [await rig.caller() for _ in range(4)]
    values = np.ones(64, np.float32)
    for turn in range(30):
        asked = [(caller, await caller.send("test.scale", {"x": values[:2]})) for caller in others]
        rig.engine.hold = True
        for _ in range(80):
            await flooding.send("test.scale", {"x": values})
        await rig.settle()
        assert rig.planner.waiting_rows <= 4096
        rig.engine.release()
        await rig.settle(36)
        for caller, id_ in asked:
            assert set(caller.outcome(id_, 2)) == {0, 1}, f"not answered in turn {turn}"
            assert not caller.codes(id_)
    assert any(flooding.codes(id_) == ["busy"] for id_ in range(1, flooding.last_id + 1))


async def test_frames_that_leave_for_other_clients_are_answered_busy_once(start_rig: StartRig) -> None:
    rig = await start_rig(Limits(queue_rows=100, max_rows=10), slots=1)
    rig.engine.hold = True
    flooding, other = await rig.caller(), await rig.caller()
    ids = [await flooding.send("test.scale", {"x": np.ones(20, np.float32)}) for _ in range(6)]
    await rig.settle()
    last = await other.send("test.scale", {"x": np.ones(30, np.float32)})
    await rig.settle()
    refused = [id_ for id_ in ids if flooding.codes(id_)]
    assert refused
    assert all(flooding.codes(id_) == ["busy"] for id_ in refused)
    assert all(reply.err[0].retry_ms > 0 for id_ in refused for reply in flooding.answers(id_))
    rig.engine.hold = False
    rig.engine.release()
    await rig.settle(240)
    assert set(other.outcome(last, 30)) == set(range(30))
    assert not other.codes(last)
    assert all(len(flooding.outcome(id_, 20)) == 20 for id_ in ids)
    rig.assert_idle()
