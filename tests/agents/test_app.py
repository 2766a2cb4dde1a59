"""An app: agents registered, served in tests and in processes, found in discovery, stopped by signals."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import aikoryu as ai
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.discovery import AGENTS, discover
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import BusSettings, NatsSettings, ServerSettings, Settings, WorkerSettings

from .conftest import turns, until


class Ask(ai.Message):
    text: str


class Echo(ai.Agent):
    """Counts what it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    @ai.handler
    async def ask(self, message: Ask) -> str:
        """Say it again."""
        self.asked += 1
        return message.text

    @ai.handler
    async def times(self) -> int:
        return self.asked


def double(number: int) -> int:
    """Twice as much."""
    return 2 * number


def thread() -> int:
    return threading.get_ident()


async def boom(number: int) -> int:
    raise ValueError(f"not {number}")


# --- registering -----------------------------------------------------------------------------------------------------


async def test_class_becomes_an_agent_and_stays_a_class() -> None:
    app = ai.App.in_memory()
    decorated = app.agent("echo", capabilities={"say"})(Echo)
    assert decorated is Echo
    async with app as bus:
        assert bus is app.bus
        assert await bus.agents.get(Echo).ask(Ask("x")) == "x"
        assert await bus.agents.get("echo").ask({"text": "y"}) == "y"


async def test_each_start_makes_its_own_agents() -> None:
    app, kept = ai.App.in_memory(), Echo()
    app.add(Echo, "fresh")
    app.add(kept, "kept")
    for _ in range(2):
        async with app as bus:
            for name in ("fresh", "kept"):
                await bus.agents.get(name).ask({"text": "x"})
            assert await bus.agents.get("fresh").times() == 1
    assert kept.asked == 2


async def test_functions_become_tools() -> None:
    app = ai.App.in_memory()
    app.tool(double)
    app.tool(thread)
    app.tool(name="loud", capabilities={"fail"}, idempotent=True)(boom)
    async with app as bus:
        assert await bus.agents.get(double).call({"number": 4}) == 8
        assert await bus.agents.get("double").call({"number": 5}) == 10
        assert await bus.agents.get(thread).call() != threading.get_ident()
        with pytest.raises(ai.HandlerFailed, match="ValueError: not 3"):
            await bus.agents.get("loud").call({"number": 3})
        with pytest.raises(ai.BadMessage, match="number"):
            await bus.agents.get("loud").call({})
    assert double(1) == 2


async def test_threads_whose_callers_have_left_count_among_those_that_run() -> None:
    go = threading.Event()
    began: list[int] = []

    def block(number: int) -> int:
        began.append(number)
        go.wait(5.0)
        return number

    app = ai.App.in_memory()
    app.tool(concurrency=1)(block)
    async with app as bus:
        try:
            for number in range(3):
                call = asyncio.ensure_future(bus.agents.get(block).call({"number": number}))
                await until(lambda: began)
                await turns()
                call.cancel()
                await turns()
            call = asyncio.ensure_future(bus.agents.get(block).call({"number": 3}))
            await turns()
            assert began == [0]
        finally:
            go.set()
        assert await call == 3
    assert began == [0, 3]  # of the others, nobody waited any more when there was room


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"name": "a.b"}, ValueError, "a.b"),
        ({"name": ""}, ValueError, "agent"),
        ({"name": "taken"}, ValueError, "another"),
        ({"name": "x", "concurrency": 0}, ai.BadParameter, "concurrency is 0"),
        ({"name": "x", "mailbox": -1}, ai.BadParameter, "mailbox -1"),
        ({"name": "x", "capabilities": "say"}, ai.BadParameter, "not one text"),
        ({"name": "x", "agent": object}, TypeError, "subclass of aikoryu.Agent"),
    ],
)
def test_what_cannot_be_an_agent_is_said_at_once(options: dict[str, Any], error: type[Exception], says: str) -> None:
    app = ai.App.in_memory()
    app.add(Echo, "taken")
    agent = options.pop("agent", Echo)
    with pytest.raises(error, match=says):
        app.add(agent, **options)


async def test_running_app_takes_no_more_agents_and_does_not_start_twice() -> None:
    app = ai.App.in_memory()
    with pytest.raises(RuntimeError, match="does not run"):
        _ = app.bus
    async with app:
        with pytest.raises(RuntimeError, match="runs already"):
            app.add(Echo, "late")
        with pytest.raises(RuntimeError, match="runs already"):
            await app.__aenter__()
    with pytest.raises(RuntimeError, match="does not run"):
        _ = app.bus


# --- where it runs ---------------------------------------------------------------------------------------------------


async def test_apps_of_one_bus_hear_each_other_and_namespaces_do_not(memory: MemoryBus) -> None:
    settings = Settings(bus=BusSettings(namespace="other"))
    serving, asking = ai.App.in_memory(memory), ai.App.in_memory(memory)
    apart = ai.App.in_memory(memory, settings=settings)
    serving.add(Echo, "echo")
    async with serving, asking as bus, apart as elsewhere:
        assert await bus.agents.get("echo").ask({"text": "x"}) == "x"
        with pytest.raises(ai.NoWorker):
            await elsewhere.agents.get("echo").ask({"text": "x"})


async def test_url_and_namespace_win_over_the_settings() -> None:
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        settings = Settings(nats=NatsSettings(url="nats://127.0.0.1:1"))
        app = ai.App(server.url, namespace="prod", settings=settings)
        app.add(Echo, "echo")
        async with app:
            connection = await NatsConnection.open(ConnectOptions(server.url))
            replies: list[Any] = []
            await connection.subscribe(f"{connection.inbox_prefix}.me", replies.append)
            call = {"v": 1, "n": 1, "cols": {"message": ['{"text": "x"}']}}
            payload = json.dumps(call).encode()
            await connection.publish("aikoryu.v1.prod.agent.echo.ask", payload, f"{connection.inbox_prefix}.me")
            await connection.flush()
            async with asyncio.timeout(5):
                while not replies:  # noqa: ASYNC110 - the server is waited for
                    await asyncio.sleep(0.001)
            assert json.loads(replies[0].data)["cols"]["reply"]["d"] == ['"x"']
            await connection.close()


async def test_app_without_a_server_says_so() -> None:
    with pytest.raises(ai.ConnectionFailed):
        await ai.App("nats://127.0.0.1:1", settings=Settings()).__aenter__()


# --- discovery -------------------------------------------------------------------------------------------------------


async def test_discovery_tells_handlers_with_their_schemas(memory: MemoryBus) -> None:
    app = ai.App.in_memory(memory, settings=Settings(worker=WorkerSettings(name="p1")))
    app.add(Echo, "echo")
    app.tool(double)
    async with app as bus:
        await bus.agents.get("echo").ask({"text": "x"})
        (process,) = await discover(memory.connect(), 0.01, AGENTS)
        assert await discover(memory.connect(), 0.01) == []  # no worker
    assert process["id"] == "p1"
    endpoints = {endpoint["name"]: endpoint for endpoint in process["endpoints"]}
    assert set(endpoints) == {"agent-echo-ask", "agent-echo-times", "agent-double-call"}
    ask = endpoints["agent-echo-ask"]
    assert (ask["subject"], ask["queue_group"]) == ("aikoryu.v1.default.agent.echo.ask", "agent.echo")
    assert (ask["num_requests"], ask["num_errors"], ask["data"]["waiting"]) == (1, 0, 0)
    assert json.loads(ask["metadata"]["request"])["$defs"]["Ask"]["required"] == ["text"]
    assert (ask["metadata"]["kind"], ask["metadata"]["help"]) == ("unary", "Say it again.")


@pytest.mark.parametrize(("agents", "told"), [(20, 40), (200, 30)])
async def test_discovery_of_many_agents_fits_a_message(agents: int, told: int) -> None:
    memory = MemoryBus(max_payload=8192)
    app = ai.App.in_memory(memory)
    for number in range(agents):
        app.add(Echo, f"echo{number}")
    async with app:
        connection = memory.connect()
        answers: list[Any] = []
        await connection.subscribe("_INBOX.me", answers.append)
        connection.send(f"$SRV.INFO.{AGENTS}", b"", "_INBOX.me")
        await until(lambda: answers)
    endpoints = json.loads(answers[0].data)["endpoints"]
    assert told <= len(endpoints) <= 2 * agents
    assert not any(endpoint["metadata"] for endpoint in endpoints)


# --- signals ---------------------------------------------------------------------------------------------------------

PROGRAM = """
    import asyncio
    import sys
    import aikoryu as ai

    app = ai.App(sys.argv[1], settings=ai.Settings())

    @app.agent("slow")
    class Slow(ai.Agent):
        @ai.handler
        async def wait(self) -> str:
            go = asyncio.Event()
            asyncio.get_running_loop().add_reader(0, go.set)
            await go.wait()
            return "well"

    app.run()
"""


@asynccontextmanager
async def program(
    folder: Path, url: str, *options: str, text: str = PROGRAM
) -> AsyncIterator[asyncio.subprocess.Process]:
    path = folder / "program.py"
    path.write_text(textwrap.dedent(text))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, *options, str(path), url, stdin=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(20):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def asked(process: asyncio.subprocess.Process, url: str) -> AsyncIterator[asyncio.Task[Any]]:
    """A call that the program runs, and answers when it is given a line."""
    assert process.stderr is not None
    while b"agents ready" not in await process.stderr.readline():
        pass
    async with ai.connect(url, settings=Settings()) as bus:
        answer = asyncio.ensure_future(bus.agents.get("slow").wait())
        running = False
        while not running:
            (found,) = await discover(bus._transport, 0.02, AGENTS)
            running = any(endpoint["data"]["running"] for endpoint in found["endpoints"])
        yield answer
        answer.cancel()


async def test_signal_has_it_answer_what_it_accepted(tmp_path: Path) -> None:
    async with (
        EmbeddedServer(ServerSettings(port=0)) as server,
        program(tmp_path, server.url) as process,
        asked(process, server.url) as answer,
    ):
        process.send_signal(signal.SIGTERM)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        assert await answer == "well"
        assert await process.wait() == 0


async def test_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with (
        EmbeddedServer(ServerSettings(port=0)) as server,
        program(tmp_path, server.url) as process,
        asked(process, server.url),
    ):
        process.send_signal(signal.SIGTERM)  # two of one kind could come as one
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130


ENDED_TWICE = """
    import asyncio, os, signal, sys
    import aikoryu as ai

    async def end_twice(app, turns):
        while app._bus is None:
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(turns):
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)

    def run(turns):
        app = ai.App(sys.argv[1])

        @app.agent("ended")
        class Ended(ai.Agent):
            def __init__(self):
                self.ending = asyncio.create_task(end_twice(app, turns))

            @ai.handler
            async def ask(self) -> None: ...

        try:
            app.run()
        except SystemExit as end:
            return end.code
        return 0

    for turns in range(40):
        print("status", run(turns), file=sys.stderr)
"""


async def test_second_signal_ends_it_wherever_the_first_has_got_to(tmp_path: Path) -> None:
    # Warnings are errors: as uvloop's loop closes, it then waits for ever for a socket that was left open.
    async with (
        EmbeddedServer(ServerSettings(port=0)) as server,
        program(tmp_path, server.url, "-W", "error", text=ENDED_TWICE) as process,
    ):
        assert process.stderr is not None
        said = (await process.stderr.read()).decode()
        assert await process.wait() == 0
    statuses = re.findall(r"^status (\d+)$", said, re.M)
    assert len(statuses) == 40
    assert statuses[0] == "130", "both came before the first was heard"
    assert set(statuses) <= {"130", "0"}, "the second may come too late"
    assert "Warning" not in said


async def test_program_without_a_server_fails_with_a_sentence(tmp_path: Path) -> None:
    async with program(tmp_path, "nats://127.0.0.1:1") as process:
        assert process.stderr is not None
        said = await process.stderr.read()
        assert await process.wait() == 1
    assert b"aikoryu: cannot connect" in said
    assert b"Traceback" not in said
