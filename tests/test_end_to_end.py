"""A real server, a real worker, and clients from plain nats-py with `msgpack` to the SDK."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgpack
import nats
import numpy as np
import pytest

import aikoryu
from aikoryu.agents import open_transport
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import BatchSettings, ModelSettings, NatsSettings, ServerSettings, Settings, WorkerSettings
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker

ROOT = "aikoryu.v1.default"
A = np.arange(6, dtype="<f4").reshape(2, 3)
B = np.arange(12, dtype="<f4").reshape(3, 4)


class Bench:
    """One server and one worker.

    Attributes:
        url: of the server.
        engine: where its batches run, if it is the one in this process.
    """

    def __init__(self, url: str, worker: Worker, engine: InlineEngine | None) -> None:
        self.url = url
        self.engine = engine
        self._worker = worker
        self._stopped = False

    async def stop(self) -> bool:
        """Stop the worker; true if everything accepted was answered."""
        if self._stopped:
            return True
        self._stopped = True
        return await self._worker.stop()


@asynccontextmanager
async def bench(child: bool = False, **groups: Any) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer(ServerSettings(port=0)))
        groups.setdefault("worker", WorkerSettings(name="w1", drain_s=10))
        settings = Settings(nats=NatsSettings(url=server.url), models=ModelSettings(embed=()), **groups)
        transport = await open_transport(settings)
        stack.push_async_callback(transport.close)
        engine = None if child else InlineEngine(load(catalogue_of(settings)))
        worker = Worker(transport, settings, [engine] if engine else [])
        await worker.start()
        made = Bench(server.url, worker, engine)
        stack.push_async_callback(made.stop)
        yield made


@pytest.fixture
async def here() -> AsyncIterator[Bench]:
    """A worker whose engine is in this process."""
    async with bench() as made:
        yield made


@pytest.fixture
async def plain(here: Bench) -> AsyncIterator[Any]:
    """A nats-py client."""
    client = await nats.connect(here.url)
    yield client
    await client.close()


def column(array: Any) -> dict[str, Any]:
    return {"t": f"{array.dtype.kind}{array.dtype.itemsize}", "s": list(array.shape), "d": array.tobytes()}


def request(n: int, columns: dict[str, Any], **fields: Any) -> bytes:
    payload: bytes = msgpack.packb({"v": 1, "n": n, "cols": columns, **fields})
    return payload


async def ask(client: Any, operation: str, payload: bytes) -> dict[str, Any]:
    message = await client.request(f"{ROOT}.{operation}", payload, timeout=10)
    assert set(message.headers or ()) <= {"Nats-Service-Error", "Nats-Service-Error-Code"}
    reply: dict[str, Any] = msgpack.unpackb(message.data)
    return reply


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what it looks at comes over a socket
            await asyncio.sleep(0.005)


async def test_plain_client_with_msgpack_gets_its_product(plain: Any) -> None:
    reply = await ask(plain, "matrix.matmul", request(1, {"a": column(A[None]), "b": column(B[None])}, id=5))
    assert (reply["id"], reply["at"], reply["last"]) == (5, [[0, 1]], True)
    product = reply["cols"]["c"]
    assert (product["t"], product["s"]) == ("f4", [1, 2, 4])
    np.testing.assert_array_equal(np.frombuffer(product["d"], "<f4").reshape(2, 4), A @ B)
    assert reply["by"]["engine"] == "cpu"
    assert reply["by"]["batch"] == 1


async def test_request_typed_by_hand_gets_a_reply_a_person_can_read(plain: Any) -> None:
    typed = b"""
    {"v": 1, "n": 1, "cols": {"a": {"t": "f4", "d": [[[1, 2], [3, 4]]]},
                              "b": {"t": "f4", "d": [[[1, 0], [0, 1]]]}}}
    """.strip()
    reply = json.loads((await plain.request(f"{ROOT}.matrix.matmul", typed, timeout=10)).data)
    assert reply["cols"] == {"c": {"t": "f4", "d": [[[1.0, 2.0], [3.0, 4.0]]]}}
    assert reply["err"] == []
    reply = json.loads((await plain.request(f"{ROOT}.echo", b'{"v":1,"n":2,"cols":{"x":[1,2]}}', timeout=10)).data)
    assert reply["cols"]["x"] == {"t": "i8", "d": [1, 2]}


@pytest.mark.parametrize(
    ("payload", "code", "says"),
    [
        (b"\x00garbage", "bad_frame", "not a"),
        (msgpack.packb(["other", "shape"]), "bad_frame", "object"),
        (msgpack.packb({"v": 7, "id": "uuid"}), "bad_version", "7"),
        (request(0, {}), "bad_frame", "at least one row"),
        (request(1, {"a": column(A[None])}), "bad_column", "'b' is missing"),
        (
            request(1, {"a": column(A[None]), "b": column(B[None]), "z": column(B[None])}),
            "bad_column",
            "'z' is not known",
        ),
        (request(1, {"a": column(A[None]), "b": column(A[None])}), "bad_column", "dimension k"),
        (request(1, {"a": column(A[None]), "b": column(B[None].astype("<f8"))}), "bad_column", "one dtype"),
        (request(1, {"a": column(A[None].astype("<i4")), "b": column(B[None])}), "bad_column", "'a' is i4"),
        (request(2, {"a": column(A[None]), "b": column(B[None])}), "bad_column", "n = 2"),
        (request(1, {"a": {**column(A[None]), "d": b"short"}, "b": column(B[None])}), "bad_column", "5 bytes"),
        (request(1, {"a": column(A[None]), "b": column(B[None])}, p={"scale": 2}), "bad_parameter", "scale"),
        (request(1, {"a": column(A[None]), "b": column(B[None])}, p=5), "bad_parameter", ""),
    ],
)
async def test_bad_input_gets_its_code_and_its_neighbours_their_answers(
    here: Bench, plain: Any, payload: bytes, code: str, says: str
) -> None:
    engine = here.engine
    assert engine is not None
    engine.hold = True  # so that all of them meet in one window
    good = [
        asyncio.ensure_future(ask(plain, "matrix.matmul", request(1, {"a": column(A[None] + n), "b": column(B[None])})))
        for n in range(2)
    ]
    bad = asyncio.ensure_future(ask(plain, "matrix.matmul", payload))
    last = asyncio.ensure_future(ask(plain, "matrix.matmul", request(1, {"a": column(A[None]), "b": column(B[None])})))
    refused = await bad
    await until(lambda: bool(engine.jobs))
    engine.release()
    (error,) = refused["err"]
    assert error["code"] == code
    assert says in error["msg"]
    assert refused["last"] is True
    for n, reply in enumerate(await asyncio.gather(*good)):
        np.testing.assert_array_equal(np.frombuffer(reply["cols"]["c"]["d"], "<f4").reshape(2, 4), (A + n) @ B)
    assert "err" not in await last


async def test_reply_to_a_subject_that_is_no_inbox_is_not_sent(plain: Any) -> None:
    seen: list[str] = []

    async def on_message(message: Any) -> None:
        seen.append(message.subject)

    await plain.subscribe("victim", cb=on_message)
    await plain.publish(f"{ROOT}.echo", request(1, {"x": column(A[:1])}), reply="victim")
    await plain.flush()
    await ask(plain, "echo", request(1, {"x": column(A[:1])}))  # handled after the one before
    await plain.flush()
    assert seen == []


async def test_trap_01_frames_of_one_read_run_as_one_batch(here: Bench, plain: Any) -> None:
    engine = here.engine
    assert engine is not None
    asked = [asyncio.ensure_future(ask(plain, "echo", request(1, {"x": column(A[:1] + n)}))) for n in range(40)]
    replies = await asyncio.gather(*asked)
    for n, reply in enumerate(replies):
        np.testing.assert_array_equal(np.frombuffer(reply["cols"]["x"]["d"], "<f4"), A[0] + n)
    # Each awaited in its callback, they would be forty batches of one.
    assert len(engine.jobs) <= 4
    assert max(reply["by"]["batch"] for reply in replies) >= 10


async def test_sdk_calls_from_several_connections_share_batches(here: Bench) -> None:
    engine = here.engine
    assert engine is not None
    async with AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(aikoryu.connect(here.url)) for _ in range(4)]
        found = await asyncio.gather(*(bus.matrix.matmul(A + n, B) for n in range(32) for bus in buses))
        for position, product in enumerate(found):
            np.testing.assert_array_equal(product, (A + position // 4) @ B)
        assert len(engine.jobs) <= 8
        (worker,) = await buses[0].workers(wait_s=0.1)
    assert worker["id"] == "w1"


async def test_many_rows_and_streams_come_back_in_order(here: Bench) -> None:
    rows = np.random.default_rng(5).standard_normal((20_000, 16), np.float32)
    async with aikoryu.connect(here.url) as bus:
        np.testing.assert_array_equal((await bus.call_many("echo", {"x": rows}))["x"], rows)
        streamed = [answer["x"] async for answer in bus.stream("echo", ({"x": part} for part in np.split(rows, 20)))]
    np.testing.assert_array_equal(np.concatenate(streamed), rows)


async def test_cancelled_row_does_not_run_and_its_neighbours_do(here: Bench) -> None:
    engine = here.engine
    assert engine is not None
    async with aikoryu.connect(here.url) as bus:
        engine.hold = True
        blocking = [bus.call("echo", {"x": np.full(2, n)}) for n in range(1)]
        await until(lambda: len(engine.jobs) == 1)
        blocking += [bus.call("echo", {"x": np.full(2, 1)})]
        await until(lambda: len(engine.jobs) == 2)  # every slot is taken: what follows waits
        calls = [bus.call("matrix.add", {"a": np.full(2, n), "b": np.ones(2, int)}) for n in range(5)]
        (worker,) = await bus.workers(wait_s=0.05)  # asked after the calls, answered after they were accepted
        assert worker["id"] == "w1"
        calls[1].cancel()
        calls[3].cancel()
        await bus.workers(wait_s=0.05)
        engine.release()
        found = await asyncio.gather(*blocking, *calls, return_exceptions=True)
    assert [row["c"].tolist() for row in found[2:] if isinstance(row, dict)] == [[1, 1], [3, 3], [5, 5]]
    assert [type(found[2 + n]) for n in (1, 3)] == [asyncio.CancelledError] * 2
    assert engine.jobs[-1].rows == 3


async def test_full_queue_refuses_at_once_and_recovers() -> None:
    async with bench(batch=BatchSettings(queue_rows=8)) as made, aikoryu.connect(made.url) as bus:
        engine = made.engine
        assert engine is not None
        engine.hold = True
        running = []
        for slot in range(engine.slots):
            running.append(bus.call("echo", {"x": slot}))
            await until(lambda: len(engine.jobs) == len(running))
        waiting = [bus.call("echo", {"x": np.zeros(n + 1)}) for n in range(8)]
        await bus.workers(wait_s=0.05)
        with pytest.raises(aikoryu.Busy) as caught:
            await bus.call("matrix.add", {"a": [1], "b": [2]})
        assert caught.value.retry_after_s > 0
        engine.release()
        assert len(await asyncio.gather(*running, *waiting)) == 10
        assert (await bus.matrix.add([1], [2])).tolist() == [3]


async def test_trap_05_stop_answers_everything_accepted(here: Bench) -> None:
    engine = here.engine
    assert engine is not None
    async with aikoryu.connect(here.url) as bus:
        engine.hold = True
        calls = [bus.call("echo", {"x": np.full(n % 4, float(n))}) for n in range(100)]
        await until(lambda: len(engine.jobs) == engine.slots)
        stopping = asyncio.create_task(here.stop())
        await asyncio.sleep(0)
        engine.release()
        assert await stopping is True
        async with asyncio.timeout(5):
            found = await asyncio.gather(*calls)
        assert [row["x"].tolist() for row in found] == [[float(n)] * (n % 4) for n in range(100)]
        with pytest.raises(aikoryu.NoWorker):
            await bus.call("echo", {"x": 1})


async def test_standard_tooling_sees_the_worker(plain: Any) -> None:
    info = json.loads((await plain.request("$SRV.INFO.aikoryu", b"", timeout=5)).data)
    endpoints = {endpoint["name"]: endpoint for endpoint in info["endpoints"]}
    assert {"echo", "matrix-matmul", "matrix-add", "matrix-subtract", "matrix-multiply"} <= endpoints.keys()
    assert endpoints["matrix-matmul"]["subject"] == f"{ROOT}.matrix.matmul"
    assert endpoints["matrix-matmul"]["queue_group"] == "matrix"
    assert endpoints["matrix-matmul"]["metadata"]["inputs"] == "a: T[*,i?,k], b: T[*,k,j?]"
    await ask(plain, "echo", request(1, {"x": column(A[:1])}))
    stats = json.loads((await plain.request("$SRV.STATS.aikoryu", b"", timeout=5)).data)
    echo = next(endpoint for endpoint in stats["endpoints"] if endpoint["name"] == "echo")
    assert (echo["num_requests"], echo["num_errors"]) == (1, 0)
    assert echo["data"]["rows"] == 1


async def test_processes_answer_and_leave_with_their_worker() -> None:
    async with bench(child=True) as made, aikoryu.connect(made.url) as bus:
        found = await asyncio.gather(*(bus.matrix.matmul(A + n, B) for n in range(10)))
        np.testing.assert_allclose(np.stack(found), [(A + n) @ B for n in range(10)], rtol=1e-6)
        assert (await bus.call("echo", {"x": 5}))["x"] == 5
        client = await nats.connect(made.url)
        reply = await ask(client, "echo", request(1, {"x": column(A[:1])}))
        assert reply["cols"]["x"] == column(A[:1])
        await client.close()
        (context,) = made._worker._contexts
        pids = [made._worker._engines[0].host.pid, context.pid]  # type: ignore[attr-defined]
        for pid in pids:
            os.kill(pid, 0)  # it is there
        assert await made.stop()
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
