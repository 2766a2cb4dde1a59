"""Trace context: one tree from a program through agents to operations, checked with OpenTelemetry's own exporter."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext
from typing import Any

import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import aikoryu as ai
from aikoryu.bus import tracing
from aikoryu.bus.errors import Closed
from aikoryu.bus.frames import decode_request
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.service import Service
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message
from aikoryu.gpu.front import Front
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.operation import Operation
from aikoryu.gpu.ops.echo import Echo
from aikoryu.gpu.plan import Limits
from aikoryu.gpu.telemetry import Telemetry

SUBJECTS = Subjects()
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"

exporter = InMemorySpanExporter()


@pytest.fixture(scope="module", autouse=True)
def _provider() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    otel.set_tracer_provider(provider)


@pytest.fixture(autouse=True)
def _no_spans_yet() -> None:
    exporter.clear()


@pytest.fixture
def without_api(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where nobody has loaded it."""
    monkeypatch.delitem(sys.modules, tracing.API)


class Ask(ai.Message):
    text: str
    fail: bool = False


class Asker(ai.Agent):
    @ai.handler
    async def ask(self, message: Ask, call: ai.Call) -> str:
        if message.fail:
            raise ai.Declined("unwilling", "not today")
        answer = await call.bus.call("echo", {"x": 1.0})
        return f"{message.text} {answer['x']}"

    @ai.handler
    async def relay(self, message: Ask, call: ai.Call) -> str:
        return str(await call.agent("asker").ask(message))

    @ai.handler
    async def both(self, message: Ask, call: ai.Call) -> list[Any]:
        return await call.gather([call.agent("asker").ask(message), call.agent("asker").ask(message)])

    @ai.handler
    async def count(self, message: Ask) -> AsyncIterator[int]:
        for number in range(3):
            yield number
        if message.fail:
            raise ai.Declined("unwilling", "no more")

    @ai.handler
    async def wait(self) -> None:
        await asyncio.Event().wait()


class Total(ai.Message):
    value: int = 0


class Counter(ai.Stateful[Total]):
    @ai.handler
    async def add(self, number: int, call: ai.Call) -> int:
        await call.bus.call("echo", {"x": 1.0})
        self.state.value += number
        return self.state.value


class Bench:
    """An app with agents and a front on one bus, and who hears what they are asked.

    Attributes:
        traces: the trace context of each frame, by what was asked.
    """

    def __init__(self) -> None:
        self.memory = MemoryBus()
        self.traces: dict[str, list[str]] = {}

    async def start(self, stack: AsyncExitStack) -> None:
        operations: dict[str, Operation] = {"echo": Echo()}
        self.engine = InlineEngine(operations, slots=1)
        service = Service(self.memory.connect(), SUBJECTS, "worker", reply_prefixes=("_INBOX",))
        front = Front(service, [self.engine], operations, Limits(), Telemetry())
        stack.callback(front.stop)
        await self.engine.start()
        stack.push_async_callback(self.engine.stop)
        await service.start()
        await service.serve("echo", front.accept)
        await self.memory.connect().subscribe(f"{SUBJECTS.root}.>", self._on_frame)
        app = ai.App.in_memory(self.memory)
        app.add(Asker, "asker")
        app.add(Counter, "counter")
        self.bus = await stack.enter_async_context(app)
        self.asker = self.bus.agents.get("asker")

    def _on_frame(self, message: Message) -> None:
        name = message.subject.removeprefix(f"{SUBJECTS.root}.")
        if message.reply and not name.startswith(("presence", "ctl")):
            self.traces.setdefault(name, []).append(decode_request(message.data).trace)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        made = Bench()
        await made.start(stack)
        yield made


def spans(name: str = "") -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if not name or span.name == name]


def tree(parent: ReadableSpan | None = None) -> dict[str, Any]:
    """The spans below one, by name; those of one name are numbered."""
    found: dict[str, Any] = {}
    for span in spans():
        if (span.parent.span_id if span.parent else None) == (parent and parent.context.span_id):
            name = span.name if span.name not in found else f"{span.name} {len(found)}"
            found[name] = tree(span)
    return found


def program(name: str = "program") -> Any:
    return otel.get_tracer("test").start_as_current_span(name)


async def settled() -> None:
    for _ in range(60):
        await asyncio.sleep(0)


BATCH: dict[str, Any] = {"queue": {}, "run": {}, "reply": {}}
ASK = {"call agent.asker.ask": {"asker.ask": {"queue": {}, "call echo": {"batch echo": BATCH}}}}


# --- what is told ----------------------------------------------------------------------------------------------------


async def test_caller_agent_and_operation_are_one_tree(bench: Bench) -> None:
    with program():
        assert await bench.asker.relay({"text": "x"}) == "x 1.0"
    assert tree() == {"program": {"call agent.asker.relay": {"asker.relay": {"queue": {}, **ASK}}}}
    assert len({span.context.trace_id for span in spans()}) == 1


async def test_spans_lie_within_those_above_them(bench: Bench) -> None:
    with program():
        await bench.asker.ask({"text": "x"})
    by_id = {span.context.span_id: span for span in spans()}
    for span in spans():
        above = by_id[span.parent.span_id] if span.parent else span
        assert above.start_time is not None
        assert span.start_time is not None
        assert span.end_time is not None
        assert above.start_time - 1_000_000 <= span.start_time <= span.end_time
        assert abs(span.end_time - time.time_ns()) < 60e9


async def test_kinds_and_attributes_say_what_ran_where(bench: Bench) -> None:
    with program():
        await bench.bus.call_many("echo", {"x": [1.0, 2.0, 3.0]})
    (batch,) = spans("batch echo")
    assert batch.kind is otel.SpanKind.SERVER
    assert spans("call echo")[0].kind is otel.SpanKind.CLIENT
    assert dict(batch.attributes or {}) == {
        "aikoryu.operation": "echo",
        "aikoryu.engine": "cpu",
        "aikoryu.batch.rows": 3,
        "aikoryu.rows": 3,
    }


async def test_calls_of_one_span_share_a_frame_and_others_do_not(bench: Bench) -> None:
    bus = bench.bus

    async def ask(name: str, times: int) -> None:
        with program(name) if name else nullcontext():
            await asyncio.gather(*(bus.call("echo", {"x": 1.0}) for _ in range(times)))

    await asyncio.gather(ask("one", 3), ask("two", 2), ask("", 1), ask("", 1))
    assert len(bench.traces["echo"]) == 3
    assert {(each.attributes or {}).get("aikoryu.rows") for each in spans("call echo")} == {2, 3}
    assert bench.traces["echo"].count("") == 1
    assert tree() == {name: {"call echo": {"batch echo": BATCH}} for name in ("one", "two")}
    first, second = spans("batch echo")
    assert first.attributes is not None
    assert first.attributes["aikoryu.batch.rows"] == 7
    assert [link.context.span_id for link in first.links] == [second.parent.span_id if second.parent else 0]
    assert len(second.links) == 1


async def test_calls_that_a_handler_makes_at_once_are_its_own(bench: Bench) -> None:
    with program():
        await bench.asker.both({"text": "x"})
    (both,) = spans("asker.both")
    assert len(tree(both)) == 2  # its queue, and a call of two rows
    assert len(spans("asker.ask")) == 2
    assert len(spans("batch echo")) == 2


async def test_handler_of_a_key_is_in_the_tree(bench: Bench) -> None:
    counter = bench.bus.agents.get("counter", key="a")
    await counter.add(1)  # when it has an owner
    bench.traces.clear()
    with program():
        assert await counter.add(1) == 2
    below = {"queue": {}, "call echo": {"batch echo": BATCH}}
    assert tree() == {"program": {"call agent.counter.add": {"counter.add": below}}}


async def test_stream_is_one_span_until_it_is_left(bench: Bench) -> None:
    with program():
        stream = bench.asker.count.stream({"text": "x"})
        assert [number async for number in stream] == [0, 1, 2]
    await settled()
    assert tree() == {"program": {"call agent.asker.count": {"asker.count": {"queue": {}}}}}
    assert all(span.status.status_code is otel.StatusCode.UNSET for span in spans())


async def test_call_of_all_processes_is_a_call(bench: Bench) -> None:
    with program():
        await bench.asker.ask.all({"text": "x"}, most=1)
    assert list(tree()["program"]) == ["call agent.asker.all.ask"]
    assert list(tree()["program"]["call agent.asker.all.ask"]) == ["asker.ask"]


# --- errors ----------------------------------------------------------------------------------------------------------


async def test_errors_are_told_with_their_codes(bench: Bench) -> None:
    with program():
        with pytest.raises(ai.Declined):
            await bench.asker.ask({"text": "x", "fail": True})
        with pytest.raises(ai.BadMessage):
            await bench.asker.ask({"text": 1})
        with pytest.raises(ai.NoHandler):
            await bench.asker.nothing()
        with pytest.raises(ai.Declined):
            _ = [number async for number in bench.asker.count.stream({"text": "x", "fail": True})]
    codes = [(span.name, (span.attributes or {}).get("error.type")) for span in spans()]
    assert codes.count(("asker.ask", "unwilling")) == codes.count(("call agent.asker.ask", "unwilling")) == 1
    assert codes.count(("asker.ask", "bad_message")) == codes.count(("call agent.asker.ask", "bad_message")) == 1
    assert ("call agent.asker.nothing", "no_handler") in codes
    assert ("asker.count", "unwilling") in codes
    assert {span.status.status_code for span in spans("asker.ask")} == {otel.StatusCode.ERROR}


async def test_batch_that_failed_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any, **options: Any) -> Any:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Echo, "run", run)
    with program(), pytest.raises(ai.OperationFailed):
        await bench.bus.call("echo", {"x": 1.0})
    (batch,) = spans("batch echo")
    assert batch.status.description == "operation_failed"


async def test_withdrawn_and_closed_calls_end_their_spans(bench: Bench) -> None:
    with program():
        early = bench.bus.call("echo", {"x": 1.0})
        early.cancel()
        late = asyncio.create_task(bench.asker.wait())
        await settled()
        late.cancel()
        await settled()
        left = bench.bus.call("agent.asker.wait", {"message": b"\xc0"})
        await asyncio.sleep(0)
        await bench.bus.client.close()
        with pytest.raises(Closed):
            await left
        await settled()
    calls = [(span.name, (span.attributes or {}).get("error.type")) for span in spans() if "call" in span.name]
    assert calls == [("call echo", None), ("call agent.asker.wait", None), ("call agent.asker.wait", "closed")]
    assert len(spans("asker.wait")) == 2


# --- where nothing records -------------------------------------------------------------------------------------------


async def test_without_a_span_nothing_is_carried_nor_told(bench: Bench) -> None:
    await bench.asker.relay({"text": "x"})
    await bench.bus.call_many("echo", {"x": [1.0]})
    assert spans() == []
    assert bench.traces == {"agent.asker.relay": [""], "agent.asker.ask": [""], "echo": ["", ""]}


async def test_app_started_in_a_span_does_not_give_it_to_its_handlers() -> None:
    started = asyncio.Event()
    over = asyncio.Event()

    async def start() -> None:
        with program("start"):
            await made.start(stack)
            started.set()
            await over.wait()

    async with AsyncExitStack() as stack:
        made = Bench()
        starting = asyncio.create_task(start())
        await started.wait()
        await made.asker.relay({"text": "x"})
        over.set()
        await starting
    assert [span.name for span in spans()] == ["start"]


@pytest.mark.usefixtures("without_api")
async def test_trace_context_is_passed_on_where_nothing_can_record(bench: Bench) -> None:
    connection = bench.memory.connect()
    call = json.dumps({"v": 1, "n": 1, "trace": TRACE, "cols": {"message": ['{"text": "x"}']}}).encode()
    await connection.publish(f"{SUBJECTS.root}.agent.asker.relay", call, f"{connection.inbox_prefix}.1")
    await settled()
    assert bench.traces == {"agent.asker.relay": [TRACE], "agent.asker.ask": [TRACE], "echo": [TRACE]}
    await bench.asker.ask({"text": "x"})
    assert bench.traces["agent.asker.ask"] == [TRACE, ""]
    assert spans() == []


async def test_column_of_a_call_counts_before_its_frame(bench: Bench) -> None:
    messages, traces = [b"\x81\xa4text\xa1x"] * 2, [TRACE, "whatever"]
    await bench.bus.call_many("agent.asker.ask", {"message": messages, "trace": traces})
    assert bench.traces["agent.asker.ask"] == [""]
    (handled,) = spans("asker.ask")
    assert f"{handled.context.trace_id:x}" == "a" * 32
    assert handled.parent is not None
    assert f"{handled.parent.span_id:x}" == "b" * 16
    assert len(bench.traces["echo"]) == 2


@pytest.mark.parametrize(
    "trace",
    ["x", TRACE.upper(), f"ff{TRACE[2:]}", TRACE.replace("a", "0"), TRACE.replace("b", "0"), f"{TRACE}-more", ""],
)
async def test_what_is_no_trace_context_is_ignored(bench: Bench, trace: str) -> None:
    columns: dict[str, Any] = {"message": [b"\x81\xa4text\xa1x"], "trace": [trace]}
    assert (await bench.bus.call_many("agent.asker.ask", columns))["reply"]
    assert len(spans("asker.ask")) == (trace == f"{TRACE}-more")  # a later version may have more


async def test_trace_that_was_not_sampled_is_passed_on_and_not_told(bench: Bench) -> None:
    columns: dict[str, Any] = {"message": [b"\x81\xa4text\xa1x"], "trace": [f"{TRACE[:-2]}00"]}
    await bench.bus.call_many("agent.asker.ask", columns)
    assert spans() == []
    assert bench.traces["echo"] == [f"{TRACE[:-2]}00"]


def test_opentelemetry_is_not_loaded() -> None:
    code = """
    import asyncio, sys
    import aikoryu as ai

    app = ai.App.in_memory()

    @app.tool
    async def double(number: int) -> int:
        return 2 * number

    async def main() -> None:
        async with app as bus:
            assert await bus.agents.get(double).call({"number": 2}) == 4

    asyncio.run(main())
    print([name for name in sys.modules if name.startswith("opentelemetry")])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
