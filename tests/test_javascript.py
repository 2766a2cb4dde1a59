"""The JavaScript example against a server, a worker and agents in Python: each calls the other, and each finds it."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

import aikoryu as ai
from aikoryu.agents import open_transport
from aikoryu.bus.discovery import AGENTS, discover
from aikoryu.bus.frames import decode_reply
from aikoryu.bus.permissions import inbox as inbox_of
from aikoryu.bus.server import EmbeddedServer
from aikoryu.cli import main
from aikoryu.config import ModelSettings, NatsSettings, ServerSettings, Settings, WorkerSettings
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker

EXAMPLE = Path(__file__).parent.parent / "examples" / "javascript"
SOURCES = sorted(EXAMPLE.glob("*.js")) + sorted(EXAMPLE.glob("*.json"))
INSTALL_S = 60

# An agent whose handlers are told by the test, over stdin, what they may do; what happens to them is on stdout.
TRICKY = """
import { connect } from "@nats-io/transport-node";
import { once } from "node:events";
import { serve } from "./agent.js";
import { Caller } from "./caller.js";
import { BusError } from "./frames.js";

const connection = await connect({ servers: process.argv[2] });
const caller = new Caller(connection);
const handlers = {
  async refuse() { throw new BusError("too_late", "the shop is closed"); },
  async fail() { throw new RangeError("no such thing"); },
  async wait(message, call) {
    console.log("waiting");
    await once(call.signal, "abort");
    console.log("aborted");
  },
  async hold() {
    console.log("held");
    await once(process.stdin, "data");
    return "done";
  },
  async relay(message, call) { return caller.ask("python", "back", null, { chain: call.chain }); },
};
await serve(connection, "tricky", handlers);
console.log("ready");
"""

LEAVE = """
import { connect } from "@nats-io/transport-node";
import { Caller } from "./caller.js";

const connection = await connect({ servers: process.argv[2] });
const caller = new Caller(connection);
for await (const item of caller.stream("python", "count", 1e9)) if (item === 5) break;
await connection.flush();
console.log("left");
await new Promise(() => process.stdin.resume());
"""

# An agent and a caller, each with rights of its own.
SECURED = """
import { connect, nkeyAuthenticator } from "@nats-io/transport-node";
import { readFileSync } from "node:fs";
import { serve } from "./agent.js";
import { Caller } from "./caller.js";

async function open(user) {
  const authenticator = nkeyAuthenticator(readFileSync(`${process.argv[3]}/${user}.seed`).subarray(0, 58));
  return connect({ servers: process.argv[2], authenticator, inboxPrefix: `_INBOX_${user}` });
}

const connection = await open("planner");
const agent = await serve(connection, "planner", { plan: async (message) => `planned ${message}` });
const asking = await open("alice");
const caller = new Caller(asking, { inboxPrefix: "_INBOX_alice" });
console.log(await caller.ask("planner", "plan", "dinner"));
process.stdin.once("data", async () => {
  caller.close();
  await agent.stop();
  await Promise.all([asking.drain(), connection.drain()]);
  process.stdin.pause();
});
"""

SERVICES = """
import { Svcm } from "@nats-io/services";
import { connect } from "@nats-io/transport-node";

const connection = await connect({ servers: process.argv[2] });
const client = new Svcm(connection).client({ strategy: "stall", maxWait: 500 });
for (const verb of ["ping", "info", "stats"]) {
  for await (const found of await client[verb]()) console.log(JSON.stringify(found));
}
await connection.drain();
"""


class Ask(ai.Message):
    text: str


class Python(ai.Agent):
    """What JavaScript calls."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    @ai.handler
    async def greet(self, message: Ask) -> dict[str, str]:
        return {"text": f"hello {message.text}"}

    @ai.handler
    async def count(self, upto: int) -> AsyncIterator[int]:
        try:
            for number in range(upto):
                yield number
                await asyncio.sleep(0)
        finally:
            self.closed.set()

    @ai.handler
    async def back(self, call: ai.Call) -> Any:
        """Ask who asks: a cycle."""
        return await call.bus.agents.get("tricky").relay(None)


class Programs:
    """The JavaScript example beside a server.

    Attributes:
        url: of the server.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._folder = folder

    @asynccontextmanager
    async def script(self, name: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """A program of the example's folder, ended with the context."""
        process = await asyncio.create_subprocess_exec(
            "node",
            name,
            self.url,
            *arguments,
            cwd=self._folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(20):
                yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def output(self, name: str, *arguments: str) -> tuple[str, str, int | None]:
        """What a program says on stdout and stderr, and its status."""
        async with self.script(name, *arguments) as process:
            said, complained = await process.communicate()
        return said.decode(), complained.decode(), process.returncode


class Bench(Programs):
    """A server, a worker, an app with an agent, and the JavaScript example beside them.

    Attributes:
        bus: of the app.
        agent: the app's.
        transport: a connection of the test's.
    """

    def __init__(self, url: str, folder: Path, bus: Any, agent: Python, transport: Any) -> None:
        super().__init__(url, folder)
        self.bus = bus
        self.agent = agent
        self.transport = transport


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its packages, which come from npm or its cache."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    made = tmp_path_factory.mktemp("javascript")
    for source in SOURCES:
        shutil.copy(source, made)
    for name, program in {
        "tricky.js": TRICKY,
        "services.js": SERVICES,
        "leave.js": LEAVE,
        "secured.js": SECURED,
    }.items():
        (made / name).write_text(program)
    command = [npm, "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm ci took longer than {INSTALL_S} s")
    if done.returncode:
        pytest.skip(f"npm ci failed: {done.stderr[-300:]}")
    return made


@pytest.fixture
async def bench(folder: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer(ServerSettings(port=0)))
        settings = Settings(
            nats=NatsSettings(url=server.url),
            models=ModelSettings(embed=()),
            worker=WorkerSettings(name="w1", drain_s=2),
        )
        transport = await open_transport(settings)
        stack.push_async_callback(transport.close)
        worker = Worker(transport, settings, [InlineEngine(load(catalogue_of(settings)))])
        await worker.start()
        stack.push_async_callback(worker.stop)
        app = ai.App(server.url, settings=Settings(worker=WorkerSettings(name="p1", drain_s=2)))
        agent = Python()
        app.add(agent, "python")
        bus = await stack.enter_async_context(app)
        yield Bench(server.url, folder, bus, agent, transport)


async def test_javascript_asks_a_worker_and_finds_workers_and_agents(bench: Bench) -> None:
    said, complained, status = await bench.output("ask.js")
    assert (complained, status) == ("", 0)
    rows, *found = said.splitlines()
    assert rows == "[ [ 1, 2, 3 ], [ 4, 5, 6 ] ]"
    services = {tuple(each.split()[:2]): each.split()[2:] for each in found}
    assert "echo" in services["aikoryu", "w1"]
    assert services["aikoryu-agents", "p1"] == ["agent-python-back", "agent-python-count", "agent-python-greet"]


async def test_the_service_client_reads_what_python_answers(bench: Bench) -> None:
    await bench.bus.agents.get("python").greet(Ask(text="Ada"))
    said, complained, status = await bench.output("services.js")
    assert (complained, status) == ("", 0)
    found = {(each["type"], each["name"], each["id"]): each for each in map(json.loads, said.splitlines())}
    version = found["io.nats.micro.v1.ping_response", "aikoryu", "w1"]["version"]
    assert found["io.nats.micro.v1.ping_response", "aikoryu-agents", "p1"]["version"] == version

    echo, greet = "echo", "agent-python-greet"
    (told,) = (
        each for each in found["io.nats.micro.v1.info_response", "aikoryu", "w1"]["endpoints"] if each["name"] == echo
    )
    assert (told["subject"], told["queue_group"]) == ("aikoryu.v1.default.echo", "echo")
    assert told["metadata"]["inputs"] == "x: T[...]"
    agents = found["io.nats.micro.v1.info_response", "aikoryu-agents", "p1"]["endpoints"]
    (told,) = (each for each in agents if each["name"] == greet)
    assert told["metadata"]["kind"] == "unary"
    assert "text" in told["metadata"]["request"]
    (told,) = (
        each
        for each in found["io.nats.micro.v1.stats_response", "aikoryu-agents", "p1"]["endpoints"]
        if each["name"] == greet
    )
    assert (told["num_requests"], told["num_errors"]) == (1, 0)


async def test_javascript_asks_an_agent_for_a_reply(bench: Bench) -> None:
    said, complained, status = await bench.output("ask.js", "python", "greet", '{"text": "Ada"}')
    assert (json.loads(said), complained, status) == ({"text": "hello Ada"}, "", 0)


@pytest.mark.parametrize(
    ("agent", "handler", "message", "code"),
    [
        ("python", "greet", '{"text": 5}', "bad_message: Expected `str`, got `int` - at `$.text`"),
        ("python", "shout", "null", "no_handler: agent.python has no handler 'shout'"),
        ("python", "count", "3", "wrong_kind: python.count streams"),
        ("nobody", "greet", "null", "no_worker: nobody serves aikoryu.v1.default.agent.nobody.greet"),
    ],
)
async def test_javascript_gets_the_codes_of_errors(
    bench: Bench, agent: str, handler: str, message: str, code: str
) -> None:
    said, complained, status = await bench.output("ask.js", agent, handler, message)
    assert (said, status) == ("", 1)
    assert complained.startswith(code)


async def test_javascript_takes_a_stream_to_its_end(bench: Bench) -> None:
    said, complained, status = await bench.output("ask.js", "python", "count", "1000", "stream")
    assert (complained, status) == ("", 0)
    assert said.split() == [str(number) for number in range(1000)]


async def test_javascript_leaves_a_stream_and_its_generator_ends(bench: Bench) -> None:
    async with bench.script("leave.js") as process:
        assert await line(process) == "left"
        await bench.agent.closed.wait()  # while the caller is still connected
        assert process.returncode is None


async def test_python_calls_javascript_and_finds_it(bench: Bench) -> None:
    async with bench.script("echo_agent.js") as process:
        started = await line(process)
        name = started.split()[-1]
        assert started == f"js-echo serves as {name}"
        peer = bench.bus.agents.get("js-echo")
        assert await peer.say({"text": "hello"}) == {"text": "hello", "language": "JavaScript"}
        many = await asyncio.gather(*(peer.say({"text": str(number)}) for number in range(50)))
        assert [each.text for each in many] == [str(number) for number in range(50)]
        assert await peer.say.all({"text": "all"}, most=1) == {name: {"text": "all", "language": "JavaScript"}}
        with pytest.raises(ai.BadMessage, match=r"at `\$\.text`"):
            await peer.say({"text": 5})
        with pytest.raises(ai.WrongKind):
            await anext(aiter(peer.say.stream({"text": "hello"})))

        (entry,) = await bench.bus.agents.entries("js-echo")
        assert (entry.process, entry.capabilities, entry.handlers) == (name, {"echo"}, ("say",))
        (service,) = [each for each in await discover(bench.transport, 0.3, AGENTS) if f"js-{each['id']}" == name]
        (endpoint,) = service["endpoints"]
        assert (endpoint["name"], endpoint["subject"], endpoint["queue_group"]) == (
            "agent-js-echo-say",
            "aikoryu.v1.default.agent.js-echo.say",
            "agent.js-echo",
        )
        assert endpoint["metadata"] == {"kind": "unary"}
        assert endpoint["num_requests"] >= 3  # frames: calls of one tick share one

        process.terminate()
        assert await process.wait() == 0
        while await bench.bus.agents.entries("js-echo"):  # noqa: ASYNC110 - its goodbye comes over a socket
            await asyncio.sleep(0.005)
        with pytest.raises(ai.NoWorker):
            await peer.say({"text": "hello"})


async def test_javascripts_errors_reach_python_with_their_codes(bench: Bench) -> None:
    async with bench.script("tricky.js") as process:
        assert await line(process) == "ready"
        tricky = bench.bus.agents.get("tricky")
        with pytest.raises(ai.Declined, match="the shop is closed") as declined:
            await tricky.refuse()
        assert declined.value.code == "too_late"
        with pytest.raises(ai.HandlerFailed, match=r"tricky\.fail: RangeError: no such thing"):
            await tricky.fail()
        with pytest.raises(ai.CallCycle, match=r"tricky\.relay → python\.back → tricky\.relay"):
            await tricky.relay()


async def test_javascript_refuses_frames_that_are_none(bench: Bench) -> None:
    good = {"t": "bin", "o": b"\0\0\0\0\1\0\0\0", "d": b"\1"}
    refusals = [
        (b"\0garbage", "bad_frame"),
        (b'{"v": 1, "n": 1, "cols": {"message": ["1"]}}', "bad_frame"),
        (msgpack.packb([1, 2]), "bad_frame"),
        (msgpack.packb({"v": 1, "n": 0}), "bad_frame"),
        (msgpack.packb({"v": 1, "n": 1, "cols": {"message": good}, "stream": 5, "client": 7}), "wrong_kind"),
        (msgpack.packb({"v": 2, "n": 1, "cols": {"message": good}}), "bad_version"),
        (msgpack.packb({"v": 1, "n": 1}), "bad_column"),
        (msgpack.packb({"v": 1, "n": 1, "cols": 5}), "bad_column"),
        (msgpack.packb({"v": 1, "n": 1 << 40, "cols": {"message": good}}), "bad_frame"),
        (msgpack.packb({"v": 1, "n": 1 << 31, "cols": {"message": good}}), "bad_column"),
        (msgpack.packb({"v": 1, "n": 1, "cols": {"message": {"t": "bin", "d": b"\1"}}}), "bad_column"),
        (msgpack.packb({"v": 1, "n": 1, "cols": {"message": {**good, "d": b"\1\1"}}}), "bad_column"),
        (msgpack.packb({"v": 1, "n": 1, "cols": {"message": {**good, "d": b"\xc1"}}}), "bad_message"),
    ]
    replies: asyncio.Queue[Any] = asyncio.Queue()
    inbox = f"{bench.transport.inbox_prefix}.refused"
    await bench.transport.subscribe(inbox, replies.put_nowait)
    async with bench.script("echo_agent.js") as process:
        await line(process)
        for payload, code in refusals:
            await bench.transport.publish("aikoryu.v1.default.agent.js-echo.say", payload, inbox)
            reply = decode_reply((await replies.get()).data)
            assert ([error.code for error in reply.err], reply.last) == ([code], True), payload
        assert (await bench.bus.agents.get("js-echo").say({"text": "well"})).text == "well"


async def test_a_withdrawn_call_aborts_its_handler(bench: Bench) -> None:
    async with bench.script("tricky.js") as process:
        assert await line(process) == "ready"
        call = asyncio.ensure_future(bench.bus.agents.get("tricky").wait())
        assert await line(process) == "waiting"
        call.cancel()
        assert await line(process) == "aborted"


async def test_a_call_that_takes_long_is_not_sent_again(bench: Bench) -> None:
    frames: list[Any] = []
    await bench.transport.subscribe("aikoryu.v1.default.agent.tricky.hold", frames.append)
    async with bench.script("tricky.js") as process:
        assert await line(process) == "ready"
        call = asyncio.ensure_future(bench.bus.agents.get("tricky").hold(idempotent=True))
        assert await line(process) == "held"
        await asyncio.sleep(2.0)  # a silent frame is asked about after 1 s, and sent again 0.5 s later
        assert process.stdin is not None
        process.stdin.write(b"\n")
        assert await call == "done"
    assert len(frames) == 1


async def test_both_do_with_the_rights_of_their_users(folder: Path, tmp_path: Path) -> None:
    assert main(["auth", "init", str(tmp_path), "--callers", "alice", "--agents", "planner"]) == 0
    config = (tmp_path / "nats-server.conf").read_text()
    async with EmbeddedServer(ServerSettings(port=0), extra_config=config) as server:
        nats = NatsSettings(url=server.url, nkey_seed_file=str(tmp_path / "alice.seed"), inbox_prefix=inbox_of("alice"))
        programs = Programs(server.url, folder)
        async with (
            programs.script("secured.js", str(tmp_path)) as process,
            ai.connect(settings=Settings(nats=nats)) as bus,
        ):
            assert await line(process) == "planned dinner"
            assert await bus.agents.get("planner").plan("lunch") == "planned lunch"
            assert [entry.name for entry in await bus.agents.entries()] == ["planner"]
            assert process.stdin is not None
            assert process.stderr is not None
            process.stdin.write(b"\n")
            assert await process.wait() == 0
            assert await process.stderr.read() == b""


def test_the_lockfile_names_no_host() -> None:
    packages = json.loads((EXAMPLE / "package-lock.json").read_text())["packages"]
    assert not any("resolved" in package for package in packages.values())
    assert all("integrity" in package for name, package in packages.items() if name)
