"""The test kit: agents in memory, stopped time, faults, and recorded calls made again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import uvloop

import aikoryu as ai
from aikoryu import testing
from aikoryu.bus.deadline import until
from aikoryu.bus.recorder import STREAMS, Recorder
from aikoryu.bus.recording import Recording, RecordingWriter
from aikoryu.bus.subjects import Subjects

SUBJECTS = Subjects()


class Say(ai.Message):
    text: str
    times: int = 1


class Said(ai.Message):
    text: str
    times: int = 0


class SaidOtherwise(ai.Message):
    times: int = 0
    text: str = ""


app = ai.App()


@app.agent("echo", capabilities={"say"}, concurrency=1, mailbox=0)
class Echo(ai.Agent):
    @ai.handler(idempotent=True)
    async def say(self, message: Say) -> Said:
        if not message.text:
            raise ai.Declined("nothing", "say something")
        return Said(message.text * message.times, message.times)

    @ai.handler
    async def wait(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @ai.handler
    async def left(self, seconds: float, call: ai.Call) -> float:
        await asyncio.sleep(seconds)
        return call.deadline_s

    @ai.handler
    async def count(self) -> AsyncIterator[int]:
        for number in range(3):
            yield number


class Total(ai.Message):
    value: int = 0


@app.agent("counter")
class Counter(ai.Stateful[Total]):
    @ai.handler
    async def add(self, number: int) -> int:
        self.state.value += number
        return self.state.value


@app.tool
async def double(number: int) -> int:
    return 2 * number


class Shouting(Echo):
    """Stands in for another."""

    @ai.handler(idempotent=True)
    async def say(self, message: Say) -> SaidOtherwise:  # type: ignore[override]
        return SaidOtherwise(text=message.text.upper(), times=message.times)


async def call_twice(bus: ai.Bus) -> list[Any]:
    echo = bus.agents.get("echo")
    return [await echo.say({"text": text}) for text in ("x", "y")]


# --- apps ------------------------------------------------------------------------------------------------------------


async def test_app_brings_its_agents_as_they_were_registered() -> None:
    async with testing.app(app) as bus:
        assert [peer._name for peer in await bus.agents.find(capabilities={"say"})] == ["echo"]
        echo = bus.agents.get(Echo)
        first = asyncio.create_task(echo.wait(0.01))
        await asyncio.sleep(0)
        with pytest.raises(ai.Busy):  # one runs, none may wait
            await echo.wait(0.0)
        assert await first > 0
        assert await bus.agents.get(double).call({"number": 2}) == 4
    with pytest.raises(RuntimeError, match="does not run"):
        _ = app.bus


async def test_others_stand_in_by_name() -> None:
    async with testing.app(app, echo=Shouting()) as bus:
        assert (await bus.agents.get("echo").say({"text": "x"})).text == "X"
    async with testing.app(Echo, double, double_again=double, echo=Shouting) as bus:
        assert (await bus.agents.get("echo").say({"text": "x"})).text == "X"
        assert await bus.agents.get("double_again").call({"number": 2}) == 4
    async with testing.app(app) as bus:
        assert (await bus.agents.get("echo").say({"text": "x"})).text == "x"


async def test_plain_function_stands_in_and_is_left_as_it_is() -> None:
    async def double(number: int) -> int:
        return 3 * number

    async with testing.app(app, double=double) as bus:
        assert await bus.agents.get("double").call({"number": 2}) == 6
    assert vars(double) == {}


async def test_what_has_no_name_is_refused() -> None:
    with pytest.raises(ValueError, match="has no name"):
        await testing.app(lambda: None).__aenter__()
    with pytest.raises(TypeError, match=r"subclass of aikoryu\.Agent"):
        await testing.app(echo=int).__aenter__()


# --- time ------------------------------------------------------------------------------------------------------------


async def test_time_stands_still_and_goes_on_afterwards() -> None:
    loop = asyncio.get_running_loop()
    with testing.clock() as clock:
        before = loop.time()
        time.sleep(0.002)  # noqa: ASYNC251 - the machine's time shall pass, and the loop's not
        assert loop.time() == before == clock.now
        await clock.advance(3600)
        assert loop.time() == before + 3600
    assert before < loop.time() < before + 60


async def test_timers_run_in_order_each_at_its_time() -> None:
    loop, seen = asyncio.get_running_loop(), list[Any]()

    async def sleep(seconds: float, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(seconds)
            seen.append((seconds, round(loop.time() - start, 6)))

    with testing.clock() as clock:
        start = clock.now
        loop.call_later(2.5, seen.append, "never").cancel()
        tasks = [asyncio.create_task(sleep(2.0, 2)), asyncio.create_task(sleep(1.5, 2))]
        await clock.advance(3.5)
        assert seen == [(1.5, 1.5), (2.0, 2.0), (1.5, 3.0)]
        await clock.advance(0.5)
        assert seen[3:] == [(2.0, 4.0)]
        await asyncio.gather(*tasks)


async def test_one_who_polls_does_not_stop_the_clock() -> None:
    async def poll() -> None:
        while True:  # noqa: ASYNC110 - it is what is tested
            await asyncio.sleep(0)

    with testing.clock() as clock:
        polling = asyncio.create_task(poll())
        await clock.advance(1.0)
        polling.cancel()


async def test_deadlines_are_exact_to_the_handler() -> None:
    with testing.clock() as clock:
        async with testing.app(app) as bus:
            asked = asyncio.create_task(bus.agents.get("echo").left(1.5, timeout_s=2.0))
            await clock.advance(1.5)
            assert await asked == pytest.approx(0.5)
            late = asyncio.create_task(bus.agents.get("echo").wait(3.0, timeout_s=2.0))
            await clock.advance(1.999)
            assert not late.done()
            await clock.advance(0.002)
            with pytest.raises(ai.Expired):
                await late
    assert until.get() == float("inf")


async def test_heartbeats_go_on_and_a_ghost_is_gone_within_its_time_to_live() -> None:
    network = testing.Network()
    with testing.clock() as clock:
        async with testing.app(network=network) as bus, testing.app(app, network=network):
            finding = asyncio.create_task(bus.agents.entries("echo"))
            await clock.advance(1.0)
            assert [entry.name for entry in await finding] == ["echo"]
            await clock.advance(600.0)
            assert [entry.name for entry in await bus.agents.entries("echo")] == ["echo"]
            network.fault("drop:1")
            await clock.advance(60.0)
            finding = asyncio.create_task(bus.agents.entries("echo"))
            await clock.advance(5.0)
            assert await finding == []
            network.fault()


def test_time_of_uvloop_cannot_be_stopped() -> None:
    async def stop() -> None:
        with testing.clock():
            pass

    with pytest.raises(RuntimeError, match=r"uvloop.*asyncio's own loop"):
        uvloop.run(stop())


async def test_state_lasts_as_long_as_its_network() -> None:
    network = testing.Network()
    with testing.clock() as clock:
        async with testing.app(Counter, network=network) as bus:
            assert await settled(clock, bus.agents.get(Counter, key="a").add(2)) == 2
        async with testing.app(Counter, network=network) as bus:
            assert await settled(clock, bus.agents.get(Counter, key="a").add(3)) == 5
        async with testing.app(Counter) as bus:
            assert await settled(clock, bus.agents.get(Counter, key="a").add(3)) == 3


async def settled(clock: testing.Clock, call: Coroutine[Any, Any, Any]) -> Any:
    asked = asyncio.create_task(call)
    await clock.advance(5.0)
    return await asked


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["drop@0", "drop:0.3", "delay=0.5:1", "duplicate:1", "reorder:0.5", "disconnect@0"])
async def test_idempotent_calls_outlive_every_fault(rule: str) -> None:
    network = testing.Network(seed=1)
    with testing.clock() as clock:
        async with testing.app(app, network=network) as bus:
            await bus.agents.get(Echo).say(Say("before"))
            network.fault(rule)
            asked = asyncio.create_task(bus.agents.get(Echo).say(Say("x", 3), timeout_s=60))
            await clock.advance(30.0)
            assert (await asked).text == "xxx"
            assert set(network.injected) == {rule.partition("@")[0].partition(":")[0].partition("=")[0]}
            network.fault()


async def test_chance_is_that_of_the_seed() -> None:
    async def injected(seed: int) -> dict[str, int]:
        network = testing.Network("duplicate:0.5", seed=seed)
        async with testing.app(app, network=network) as bus:
            await call_twice(bus)
        return dict(network.injected)

    assert await injected(3) == await injected(3) != {}


@pytest.mark.parametrize(
    ("rule", "says"),
    [("die@0", "a bus in memory knows drop"), ("drop", "write KIND"), ("lose:1", "there is no 'lose'")],
)
def test_rule_that_is_none_is_refused(rule: str, says: str) -> None:
    with pytest.raises(ai.BadParameter, match=says):
        testing.Network(rule)


# --- recorded traffic ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def recording(path: Path, network: testing.Network, *patterns: str) -> AsyncIterator[Recorder]:
    clock = count(1)
    with RecordingWriter(path, SUBJECTS.root, patterns, next(clock), 1 << 20) as writer:
        recorder = Recorder(network.connect(), SUBJECTS, writer, patterns, ["_INBOX"], clock=lambda: next(clock))
        await recorder.start()
        yield recorder
        await recorder.stop(0.05)


Calling = Callable[[ai.Bus], Awaitable[object]]


async def record(path: Path, calling: Calling, *patterns: str) -> Recorder:
    network = testing.Network()
    async with recording(path, network, *patterns) as recorder, testing.app(app, network=network) as bus:
        await calling(bus)
    return recorder


async def many_calls(bus: ai.Bus) -> None:
    echo = bus.agents.get("echo")
    for text in ("x", "y"):
        await echo.say({"text": text})
    with pytest.raises(ai.Declined):
        await echo.say({"text": ""})
    with pytest.raises(ai.BadMessage):
        await echo.say({"text": 1})
    await bus.agents.get("double").call({"number": 4})


async def test_agent_that_answers_as_before_has_no_differences(tmp_path: Path) -> None:
    await record(tmp_path / "r", many_calls, "agent.>")
    async with testing.app(app) as bus:
        assert await testing.replay(bus, tmp_path / "r", Echo) == testing.Replayed(calls=4, compared=4)
        assert await testing.replay(bus, tmp_path / "r", "double") == testing.Replayed(calls=1, compared=1)


async def test_differences_name_the_request_and_both_replies(tmp_path: Path) -> None:
    await record(tmp_path / "r", many_calls, "agent.>")
    async with testing.app(app, echo=Shouting) as bus:
        replayed = await testing.replay(bus, tmp_path / "r", "echo")
    assert (replayed.calls, replayed.compared) == (4, 4)
    assert [str(each) for each in replayed.differences] == [
        """request 0 agent.echo.say, row 0 reply: recorded '{"text":"x","times":1}', now '{"text":"X","times":1}'""",
        """request 1 agent.echo.say, row 0 reply: recorded '{"text":"y","times":1}', now '{"text":"Y","times":1}'""",
        "request 2 agent.echo.say, row 0: recorded nothing (say something), now values",
    ]


async def test_rows_of_one_frame_are_compared_one_by_one(tmp_path: Path) -> None:
    async def together(bus: ai.Bus) -> None:
        calls = [bus.agents.get("double").call({"number": number}) for number in (1, "?", 3)]
        await asyncio.gather(*calls, return_exceptions=True)

    async def other(number: int) -> int:
        return 2 if number == 1 else 0

    await record(tmp_path / "r", together, "agent.double.*")
    async with testing.app(double=other) as bus:
        replayed = await testing.replay(bus, tmp_path / "r", "double")
    assert (replayed.calls, replayed.compared) == (3, 3)
    assert [(each.row, each.then, each.now) for each in replayed.differences] == [(2, "'6'", "'0'")]


async def test_call_of_another_language_is_made_again_in_kind(tmp_path: Path) -> None:
    network, replies = testing.Network(), list[Any]()
    async with recording(tmp_path / "r", network, "agent.>"), testing.app(app, network=network):
        connection = network.connect()
        await connection.subscribe(f"{connection.inbox_prefix}.1", replies.append)
        call = b'{"v":1,"n":1,"cols":{"message":["{\\"text\\":\\"x\\"}"]},"trace":"none"}'
        await connection.publish(f"{SUBJECTS.root}.agent.echo.say", call, f"{connection.inbox_prefix}.1")
        while not replies:  # noqa: ASYNC110 - what is waited for is in this loop
            await asyncio.sleep(0)
    async with testing.app(app) as bus:
        assert await testing.replay(bus, tmp_path / "r", "echo") == testing.Replayed(calls=1, compared=1)


async def test_refusal_is_asked_again_and_not_compared(tmp_path: Path) -> None:
    async def too_much(bus: ai.Bus) -> None:
        echo = bus.agents.get("echo")
        answers = await asyncio.gather(echo.wait(0.05), echo.wait(0.05), return_exceptions=True)
        assert isinstance(answers[1], ai.Busy)

    await record(tmp_path / "r", too_much, "agent.>")
    async with testing.app(app) as bus:
        replayed = await testing.replay(bus, tmp_path / "r", "echo")
    assert replayed == testing.Replayed(calls=2, compared=1)


async def test_calls_of_keys_are_made_again_when_they_have_an_owner(tmp_path: Path) -> None:
    network = testing.Network()
    async with testing.app(app, network=network) as bus:
        await bus.agents.get(Counter, key="warm").add(1)
        async with recording(tmp_path / "r", network, "agent.>"):
            for key in ("a", "b", "a"):
                await bus.agents.get(Counter, key=key).add(2)
    async with testing.app(app) as bus:
        assert await testing.replay(bus, tmp_path / "r", Counter) == testing.Replayed(calls=3, compared=3)
    async with testing.app(app) as bus:
        await bus.agents.get(Counter, key="a").add(1)
        replayed = await testing.replay(bus, tmp_path / "r", Counter)
        assert [(each.number, each.then, each.now) for each in replayed.differences] == [
            (0, "'2'", "'3'"),
            (2, "'4'", "'5'"),
        ]


async def test_recording_without_the_agent_says_what_it_has(tmp_path: Path) -> None:
    await record(tmp_path / "r", call_twice, "agent.>")
    async with testing.app(app) as bus:
        with pytest.raises(ValueError, match=r"no call of agent 'double': it has agent\.echo\.say"):
            await testing.replay(bus, tmp_path / "r", "double")
        with pytest.raises(ValueError, match="agent ''"):
            await testing.replay(bus, tmp_path / "r", int)


async def test_agents_are_recorded_where_they_are_named(tmp_path: Path) -> None:
    async def calls(bus: ai.Bus) -> None:
        await call_twice(bus)
        await bus.agents.get("echo").say.all({"text": "x"}, most=1)
        assert [number async for number in bus.agents.get("echo").count.stream()] == [0, 1, 2]

    for number, pattern in enumerate([">", "agent.>", "agent.echo.say"]):
        recorder = await record(tmp_path / str(number), calls, pattern)
        heard = Recording(tmp_path / str(number))
        assert [heard.exchange(each).operation for each in range(len(heard.operations))] == (
            [] if pattern == ">" else ["agent.echo.say"] * 2
        )
        assert recorder.counts[STREAMS] == (pattern == "agent.>")
