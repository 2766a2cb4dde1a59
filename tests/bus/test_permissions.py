"""What each user may do: the tables of docs/security.md, tried against a server with the generated configuration."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest
import trustme

from aikoryu.agents import Agent, App, handler
from aikoryu.agents import connect as connected
from aikoryu.agents.announcements import Announced
from aikoryu.agents.coordination import Coordination
from aikoryu.agents.coordination import streams as coordination_streams
from aikoryu.agents.jobs import Jobs
from aikoryu.agents.lookout import Lookout
from aikoryu.agents.presence import Presence
from aikoryu.agents.state_store import JetStreamStates
from aikoryu.bus.client import Client
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.discovery import AGENTS, discover
from aikoryu.bus.errors import ConnectionFailed
from aikoryu.bus.fault_control import FaultControl, inject
from aikoryu.bus.frames import Request, encode
from aikoryu.bus.jetstream import JetStream
from aikoryu.bus.job_worker import JobWorker
from aikoryu.bus.jobs import JobSubjects, streams
from aikoryu.bus.lease_bucket import LeaseBucket
from aikoryu.bus.leases import LEASES, Leases
from aikoryu.bus.loopback import Loopback
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.partition_log import PartitionLog, log_stream
from aikoryu.bus.permissions import ANSWERS, LIMITS, inbox, users
from aikoryu.bus.pipeline import Pipeline
from aikoryu.bus.recorder import Recorder, steady_clock
from aikoryu.bus.recording import Recording, RecordingWriter
from aikoryu.bus.server import EmbeddedServer
from aikoryu.bus.service import Held, Service
from aikoryu.bus.snapshots import Snapshots, snapshot_stream
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message, no_responders
from aikoryu.cli import main
from aikoryu.config import FaultSettings, JobSettings, NatsSettings, ServerSettings, Settings

DOCUMENT = (Path(__file__).parents[2] / "docs" / "security.md").read_text("utf-8")
MATMUL = "aikoryu.v1.default.matrix.matmul"
PREFIXES = (inbox("alice"), inbox("planner"), inbox("worker"))
PLAN = "aikoryu.v1.default.agent.planner.plan"


def table(title: str) -> list[list[str]]:
    """The rows of the first table below a heading of the document."""
    section = re.split(rf"^## {title}$", DOCUMENT, flags=re.MULTILINE)[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


RIGHTS = table("Who may do what")


class Secured:
    """A server with the generated configuration, and the folder of its users' seeds."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder

    def options(self, user: str, tls_ca: str = "") -> ConnectOptions:
        seed = str(self.folder / f"{user}.seed")
        return ConnectOptions(self.url, nkey_seed_file=seed, inbox_prefix=inbox(user), tls_ca=tls_ca)


def configured(folder: Path, *more: str) -> str:
    """Run the command of the document; the configuration it wrote."""
    command = re.search(r"^aikoryu (auth init) auth (.*)", DOCUMENT, re.MULTILINE)
    assert command is not None
    assert main([*command[1].split(), str(folder), *command[2].split(), *more]) == 0
    return (folder / "nats-server.conf").read_text("utf-8")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One server for all tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("auth")
    server = EmbeddedServer(
        ServerSettings(port=0), extra_config=configured(folder, "--recorder") + 'http: "127.0.0.1:-1"'
    )
    with asyncio.Runner() as runner:
        runner.run(server.start())
        yield Secured(server.url, folder)
        runner.run(server.stop())


Connect = Callable[[str], Awaitable[NatsConnection]]


@pytest.fixture
async def connect(secured: Secured) -> AsyncIterator[Connect]:
    """Connect as a user; each connection is closed after the test."""
    async with AsyncExitStack() as stack:

        async def open_(user: str) -> NatsConnection:
            connection = await NatsConnection.open(secured.options(user))
            stack.push_async_callback(connection.close)
            return connection

        yield open_


class Heard(list[Message]):
    """Collects messages; it is the callback of a subscription."""

    def __call__(self, message: Message) -> None:
        self.append(message)

    @property
    def payloads(self) -> list[bytes]:
        return [bytes(message.data) for message in self]


async def publishes(connection: NatsConnection, subject: str, payload: bytes = b"", reply: str = "") -> bool:
    """Whether the server let it."""
    before = connection.statistics().permission_errors
    await connection.publish(subject, payload, reply)
    await connection.flush()
    return connection.statistics().permission_errors == before


async def subscribes(connection: NatsConnection, subject: str, queue: str = "") -> bool:
    """Whether the server let it."""
    await connection.subscribe(subject, Heard(), queue=queue)
    try:
        await connection.flush()
    except ConnectionFailed as refused:
        return subject not in str(refused)
    return True


# --- the tables of the document -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "verb", "subject", "may"), [row[:4] for row in RIGHTS], ids=[" ".join(row[:4]) for row in RIGHTS]
)
async def test_a_user_may_what_the_table_says(connect: Connect, user: str, verb: str, subject: str, may: str) -> None:
    connection = await connect(user)
    name = subject.strip("`")
    if verb == "publish":
        allowed = await publishes(connection, name)
    else:
        group = re.fullmatch(r"subscribe(?: in group ([\w.]+))?", verb)
        assert group is not None, verb
        allowed = await subscribes(connection, name, group[1] or "")
    assert ("yes" if allowed else "no") == may


def test_the_table_has_every_user_with_what_it_may_and_may_not() -> None:
    made = users(Subjects(), ["alice"], ["planner"], ["matrix"], records=True)
    assert {(row[0], row[3]) for row in RIGHTS} == {(user.name, may) for user in made for may in ("yes", "no")}
    assert len(RIGHTS) > 60


def test_every_attempt_of_the_document_has_its_test() -> None:
    named = [row[2].strip("`") for row in table("What was tried")]
    assert len(named) > 8
    assert [name for name in named if not callable(globals().get(name))] == []


async def test_the_server_keeps_the_limits_of_the_document(tmp_path: Path) -> None:
    text = " ".join(row[1] for row in table("Limits"))
    assert [name for name, value in LIMITS.items() if f"`{name}` {value}" not in text] == []
    assert f"{ANSWERS['max']}, for {ANSWERS['expires']} " in text
    config = configured(tmp_path, "--set", "server.max_payload_bytes=5000") + 'http: "127.0.0.1:-1"'
    async with EmbeddedServer(ServerSettings(port=0, max_payload_bytes=5000), extra_config=config) as server:
        assert server._folder is not None
        (ports,) = server._folder.glob("*.ports")
        address = json.loads(ports.read_bytes())["monitoring"][0]
        kept = json.loads(await asyncio.to_thread(lambda: urllib.request.urlopen(f"{address}/varz").read()))
    assert {name: kept.get(name) for name in ("max_payload", *LIMITS)} == {"max_payload": 5000, **LIMITS}
    assert "max_payload: 5000\n" in config


# --- what was tried -------------------------------------------------------------------------------------------------


async def test_nobody_else_is_admitted(secured: Secured, tmp_path: Path) -> None:
    configured(tmp_path)
    stranger = Secured(secured.url, tmp_path)
    for options in (ConnectOptions(secured.url), stranger.options("alice")):
        with pytest.raises(ConnectionFailed, match=r"(?i)authorization violation"):
            await NatsConnection.open(options)


async def test_a_caller_cannot_answer_for_a_worker(connect: Connect) -> None:
    alice, bob, worker = await connect("alice"), await connect("bob"), await connect("worker")
    asked, answered = Heard(), Heard()
    await worker.subscribe(MATMUL, asked, queue="matrix")
    await alice.subscribe(f"{alice.inbox_prefix}.>", answered)
    await worker.flush()
    assert await publishes(alice, MATMUL, b"question", f"{alice.inbox_prefix}.1")
    await worker.flush()
    (request,) = asked
    for forger in (bob, await connect("planner")):
        assert not await publishes(forger, request.reply, b"forged")
    assert await publishes(worker, request.reply, b"answer")
    await alice.flush()
    assert answered.payloads == [b"answer"]


async def test_a_caller_finds_agents(connect: Connect) -> None:
    alice, planner = await connect("alice"), await connect("planner")
    plan = Announced("planner", frozenset({"plan"}), ("plan",))
    presence = Presence(planner, Subjects(), "p1", lambda: [plan], dict[str, float], ttl_s=5.0, reply_prefixes=PREFIXES)
    await presence.start()
    lookout = Lookout(alice, Subjects())
    assert [entry.process for entry in await lookout.find(capabilities={"plan"})] == ["p1"]
    await presence.stop()
    await planner.flush()
    await alice.flush()
    assert await lookout.find("planner") == []
    await lookout.close()


class Planner(Agent):
    @handler
    async def plan(self, text: str) -> str:
        return text

    @handler
    async def steps(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number


async def test_an_app_serves_with_an_agents_rights(secured: Secured) -> None:
    def settings(user: str) -> Settings:
        seed = str(secured.folder / f"{user}.seed")
        return Settings(nats=NatsSettings(url=secured.url, nkey_seed_file=seed, inbox_prefix=inbox(user)))

    app = App(settings=settings("planner"))
    app.add(Planner, "planner")
    async with app, connected(settings=settings("alice")) as bus:
        planner = bus.agents.get("planner")
        assert await planner.plan("x") == "x"
        assert [step async for step in planner.steps.stream(300)] == list(range(300))
        assert list((await planner.plan.all("y", most=1)).values()) == ["y"]
        (process,) = await discover(bus._transport, 0.1, AGENTS)
        assert {endpoint["name"] for endpoint in process["endpoints"]} == {"agent-planner-plan", "agent-planner-steps"}


async def test_an_agent_answers_only_who_asked(connect: Connect) -> None:
    alice, planner = await connect("alice"), await connect("planner")
    asked, answered = Heard(), Heard()
    await planner.subscribe(PLAN, asked)
    await alice.subscribe(f"{alice.inbox_prefix}.>", answered)
    await planner.flush()
    await alice.flush()
    reply = f"{alice.inbox_prefix}.1"
    assert not await publishes(planner, reply, b"unasked")
    assert await publishes(alice, PLAN, b"question", reply)
    await planner.flush()
    assert asked.payloads == [b"question"]
    # The question whether she still listens must not spend the one answer there is.
    for payload in (b"", b"answer", b"more"):
        assert await publishes(planner, reply, payload)
    assert not await publishes(planner, f"{alice.inbox_prefix}.2", b"unasked")
    await alice.flush()
    assert answered.payloads == [b"", b"answer", b"more"]


async def serving(worker: NatsConnection, held: list[Held]) -> Service:
    """A worker's service, which keeps what it accepts."""
    service = Service(worker, Subjects(), "w1", reply_prefixes=PREFIXES)
    await service.start()
    await service.serve("echo", held.append)
    await worker.flush()
    return service


async def test_a_request_cannot_send_a_worker_elsewhere(connect: Connect) -> None:
    alice, worker = await connect("alice"), await connect("worker")
    held: list[Held] = []
    service = await serving(worker, held)
    request = encode(Request(v=1, n=1, id=1, cols={}))
    for elsewhere in (MATMUL, PLAN, "_INBOX.x", "$JS.API.STREAM.NAMES"):
        assert await publishes(alice, "aikoryu.v1.default.echo", request, elsewhere)
        assert not await publishes(worker, elsewhere, b"answer")
    await worker.flush()
    assert (held, service.rejected) == ([], {"bad_reply": 4})


async def test_a_worker_learns_that_a_caller_has_gone(connect: Connect) -> None:
    alice, worker = await connect("alice"), await connect("worker")
    held: list[Held] = []
    service = await serving(worker, held)
    withdrawn = asyncio.Event()
    service.on_cancel = lambda held, rows: withdrawn.set()
    request = encode(Request(v=1, n=1, client=7, id=1, cols={}))
    assert await publishes(alice, "aikoryu.v1.default.echo", request, f"{alice.inbox_prefix}.7.1")
    await worker.flush()
    (frame,) = held
    service.probe(frame)
    async with asyncio.timeout(5):
        await withdrawn.wait()
    assert worker.statistics().permission_errors == 0


async def test_jobs_are_done_and_their_results_found(connect: Connect) -> None:
    settings, subjects = JobSettings(max_bytes=2**20, results_bytes=2**20), Subjects()
    async with JetStream(await connect("operator")) as jetstream:
        for config in streams(JobSubjects(subjects), settings):
            await jetstream.ensure_stream(config)

    worker = await connect("worker")
    loopback = Loopback(worker)
    service = Service(loopback, subjects, "w1", reply_prefixes=PREFIXES)
    await service.serve("echo", lambda held: service.answer(held, [(0, held.request.n)], held.request.cols, []))
    taking = JobWorker(worker, loopback, subjects, settings, service.may_answer)
    await taking.start(["echo"])
    users = [await connect("alice"), await connect("planner")]
    for user in users:
        jobs = Jobs(user, subjects, 10.0)
        async with asyncio.timeout(10):
            job = await jobs.submit("echo", {"x": 5})
            assert (await job)["x"] == 5
            assert (await jobs.result(job.id))["x"] == 5
        await jobs.close()
    await taking.stop()
    assert [connection.statistics().permission_errors for connection in (worker, *users)] == [0, 0, 0]


async def test_agents_coordinate_on_streams_that_the_operator_made(connect: Connect) -> None:
    async with JetStream(await connect("operator")) as jetstream:
        for config in coordination_streams(jetstream, Subjects()):
            await jetstream.ensure_stream(config)
    connection = await connect("planner")
    coordination = Coordination(connection, Subjects())
    store, queue = coordination.shared("prices"), coordination.tasks("orders", max_attempts=1)
    async with asyncio.timeout(10):
        async with coordination.lock("report") as lock, coordination.elect("desk"), aclosing(store.watch()) as changes:
            await store.put("tea", 3, token=lock.token)
            assert (await anext(changes)).value == 3
        assert await store.keys() == ["tea"]
        for fails in (False, True):
            await queue.put("tea")
            async with queue.claim() as task:
                await (task.fail("cold") if fails else task.done())
        async with aclosing(queue.dead()) as dead:
            assert [each.reason async for each in dead] == ["cold"]
    await coordination.close()
    assert connection.statistics().permission_errors == 0


async def test_agents_keep_states_on_the_stream_that_the_operator_made(connect: Connect) -> None:
    async with JetStream(await connect("operator")) as jetstream:
        for config in coordination_streams(jetstream, Subjects()):
            await jetstream.ensure_stream(config)
    connection = await connect("planner")
    states = JetStreamStates(connection, Subjects(), "p1")
    async with asyncio.timeout(10):
        await states.open()
        watching = await states.watch("planner", lambda partition: None)
        lease = await states.acquire("planner", 3)
        assert lease is not None
        sequence = await states.write("planner", 3, "tea", b"hot", 0)
        assert await states.read("planner", 3, "tea") == (sequence, b"hot")
        await lease.release()
    await watching.unsubscribe()
    await states.close()
    assert connection.statistics().permission_errors == 0


async def test_a_worker_keeps_graphs_on_streams_that_the_operator_made(connect: Connect) -> None:
    subjects = Subjects()
    async with JetStream(await connect("operator")) as jetstream:
        leases = LeaseBucket(jetstream, subjects, LEASES).config
        for config in (leases, log_stream(subjects), snapshot_stream(subjects)):
            await jetstream.ensure_stream(config)
    connection = await connect("worker")
    async with asyncio.timeout(10), JetStream(connection) as jetstream, Pipeline(connection) as pipeline:
        lease = await (await Leases.open(jetstream, subjects, "w1")).acquire("context.market", ttl_s=5)
        log = await PartitionLog.open(jetstream, subjects, "context.market")
        claimed = await log.claim(lease.token)
        snapshots = await Snapshots.open(jetstream, pipeline, subjects)
        ids = [await snapshots.put("context.market", [b"a", b"b"]) for _ in range(2)]
        await snapshots.drop("context.market", ids[1])
        await log.mark(ids[1].encode(), claimed)
        await log.purge()
        mark = await log.latest_mark()
        assert mark is not None
        async with aclosing(snapshots.get("context.market", mark.data.decode())) as parts:
            assert [part async for part in parts] == [b"a", b"b"]
        await lease.release()
    assert connection.statistics().permission_errors == 0


async def test_keepers_ask_and_answer_one_another(connect: Connect) -> None:
    asking, answering = await connect("worker"), await connect("worker")
    inbox = f"{asking.inbox_prefix.replace('worker.', 'worker.keepers.')}.1"
    answered = Heard()
    await asking.subscribe(inbox, answered)
    asked = Heard()
    await answering.subscribe("aikoryu.v1.default.context.*.market", asked)
    await answering.flush()
    assert await publishes(asking, "aikoryu.v1.default.context.yield.market", b"", inbox)
    await answering.flush()
    (request,) = asked
    assert await publishes(answering, request.reply, b"answer")
    await asking.flush()
    assert answered.payloads == [b"answer"]


async def test_only_the_operator_has_workers_misbehave(connect: Connect) -> None:
    worker, subjects = await connect("worker"), Subjects()
    settings, applied = FaultSettings(enabled=True), list[str]()
    control = FaultControl(
        worker,
        subjects,
        "w1",
        settings,
        lambda reply: reply.startswith(f"{inbox('operator')}."),
        lambda order, rules: applied.extend(rule.kind for rule in rules),
        dict,
    )
    await control.start()
    await worker.flush()
    for user in ("alice", "planner"):
        assert await inject(await connect(user), subjects, ["die:1"], 0.1) == []
    assert applied == []
    (answer,) = await inject(await connect("operator"), subjects, ["raise:1"], 0.5)
    assert (answer.worker, answer.rules) == ("w1", ["raise:1"])
    assert applied == ["raise"]
    await control.stop()


async def test_a_recorder_hears_requests_and_answers_and_takes_none(connect: Connect, tmp_path: Path) -> None:
    alice, worker, hearing = await connect("alice"), await connect("worker"), await connect("recorder")
    served: list[Held] = []

    def answer(held: Held) -> None:
        served.append(held)
        service.answer(held, [(0, held.request.n)], held.request.cols, [])

    service = Service(worker, Subjects(), "w1", reply_prefixes=PREFIXES)
    await service.serve("matrix.matmul", answer)
    await worker.flush()
    path = tmp_path / "bus.rec"
    with RecordingWriter(path, Subjects().root, ("matrix.>",), 0, 1 << 20) as writer:
        recorder = Recorder(hearing, Subjects(), writer, ["matrix.>"], PREFIXES[:2], steady_clock())
        await recorder.start()
        client = Client(alice, Subjects(), timeout_s=10, frame_bytes=65536)
        await client.start()
        assert [(await client.call("matrix.matmul", {"a": number}))["a"] for number in range(5)] == list(range(5))
        await client.close()
        await recorder.stop()
    recording = Recording(path)
    answers = [recording.exchange(number).answer.columns["a"] for number in range(len(recording))]
    assert [int(answer[0]) for answer in answers] == list(range(5))
    assert (len(served), recorder.counts.total()) == (5, 0)
    assert hearing.statistics().permission_errors == 0


async def test_only_a_recorder_may_record(connect: Connect, tmp_path: Path) -> None:
    for user in ("alice", "planner", "worker"):
        with RecordingWriter(tmp_path / user, Subjects().root, ("matrix.>",), 0, 1 << 20) as writer:
            recorder = Recorder(await connect(user), Subjects(), writer, ["matrix.>"], PREFIXES[:2], steady_clock())
            with pytest.raises(ConnectionFailed, match=r"does not let this user subscribe to _INBOX_\w+\.>, "):
                await recorder.start()


async def test_a_worker_with_the_seed_of_a_caller_says_what_it_may_not(connect: Connect) -> None:
    alice = await connect("alice")
    with pytest.raises(ConnectionFailed, match=r"does not let this user subscribe to aikoryu\.v1\.default\.ctl\.w1, "):
        await serving(alice, [])


async def test_a_caller_hears_that_nobody_serves(connect: Connect) -> None:
    alice = await connect("alice")
    answered = Heard()
    await alice.subscribe(f"{alice.inbox_prefix}.>", answered)
    assert await publishes(alice, "aikoryu.v1.default.models.embed.none", b"", f"{alice.inbox_prefix}.1")
    assert [no_responders(message) for message in answered] == [True]


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, str]:
    """PEM files: an authority, and the certificate and key of a server on 127.0.0.1."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = {"ca": authority.cert_pem, "cert": issued.cert_chain_pems[0], "key": issued.private_key_pem}
    for name, blob in files.items():
        blob.write_to_path(tmp_path / f"{name}.pem")
    return {name: str(tmp_path / f"{name}.pem") for name in files}


async def test_a_server_with_a_certificate_admits_no_plain_text(certificate: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "auth"
    config = configured(folder, "--tls-cert", certificate["cert"], "--tls-key", certificate["key"])
    assert 'host: "0.0.0.0"\n' in config
    async with EmbeddedServer(ServerSettings(port=0), extra_config=config) as server:
        address = server.url.replace("tls:", "nats:")
        encrypted = await NatsConnection.open(Secured(address, folder).options("alice", tls_ca=certificate["ca"]))
        assert await publishes(encrypted, MATMUL)
        await encrypted.close()
        reader, writer = await asyncio.open_connection(*address.removeprefix("nats://").split(":"))
        assert json.loads((await reader.readline()).removeprefix(b"INFO "))["tls_required"]
        writer.write(b'CONNECT {"verbose": false}\r\nPING\r\n')
        async with asyncio.timeout(10):
            assert b"PONG" not in await reader.read()
        writer.close()


async def test_a_client_told_of_tls_does_without_no_server(secured: Secured, certificate: dict[str, str]) -> None:
    with pytest.raises(ConnectionFailed, match="does not speak TLS"):
        await NatsConnection.open(secured.options("alice", tls_ca=certificate["ca"]))


async def test_a_message_too_large_is_not_passed_on(connect: Connect) -> None:
    alice, worker = await connect("alice"), await connect("worker")
    asked = Heard()
    await worker.subscribe(MATMUL, asked, queue="matrix")
    await worker.flush()
    alice._client._max_payload *= 2
    alice.send(MATMUL, bytes(alice.max_payload + 1))
    alice.push()
    async with asyncio.timeout(10):
        while alice.statistics().reconnects + alice.statistics().rebuilds == 0:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.005)
    assert await publishes(alice, MATMUL, b"small")
    await worker.flush()
    assert asked.payloads == [b"small"]


# --- who is who -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callers", "agents", "says"),
    [
        (["a"], ["a"], "two users are called 'a'"),
        (["worker"], [], "two users are called 'worker'"),
        (["a.b"], [], "cannot have a dot"),
        (["a", ">"], [], "use letters, digits"),
        (["a b"], [], "use letters, digits"),
        ([""], [], "use letters, digits"),
    ],
)
def test_a_name_that_would_not_be_one_user_is_refused(callers: list[str], agents: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        users(Subjects(), callers, agents, ["matrix"])


def test_a_system_cannot_be_that_of_agents() -> None:
    for reserved in ("agent", "topic", "ctl", "faults"):
        with pytest.raises(ValueError, match="cannot be called"):
            users(Subjects(), ["a"], ["b"], [reserved])


def test_another_namespace_has_other_subjects() -> None:
    made = users(Subjects("p", "n"), ["a"], ["b"], ["matrix"])
    subjects = [subject for user in made for subject in (*user.publish, *user.subscribe, *user.never)]
    own = re.compile(r"p\.(\w+\.)?v1\.n\.|_INBOX_|\$SRV\.|\$(KV|JS)\.([A-Z]+\.)*(KV_)?p-n-|\$JS\.API\.>")
    assert [subject for subject in subjects if not own.match(subject)] == []
