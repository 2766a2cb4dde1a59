"""What only a real server, or one that misbehaves on purpose, can show."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nkeys
import pytest
import trustme
import uvloop
from nats import errors
from structlog.testing import capture_logs

from aikoryu.bus import connection as module
from aikoryu.bus.connection import NatsConnection, Statistics
from aikoryu.bus.errors import ConnectionFailed, Disconnected, TooLarge
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.server import EmbeddedServer
from aikoryu.bus.transport import Message, Transport, no_responders
from aikoryu.config import ServerSettings

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]
StartServer = Callable[..., Awaitable[Any]]
Connect = Callable[..., Awaitable[NatsConnection]]

USERS = """
authorization {{ users: [
  {{ user: "alice", password: "{password}", permissions: {{ publish: ["open.>", "_INBOX.>"],
     subscribe: ["open.>", "_INBOX.>"] }} }}
] }}
"""


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open connections; each is closed after the test."""
    async with AsyncExitStack() as stack:

        async def open_(url: str, **options: Any) -> NatsConnection:
            connection = await NatsConnection.open(ConnectOptions(url, **options))
            stack.push_async_callback(connection.close)
            return connection

        yield open_


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts that suit a test."""
    monkeypatch.setattr(module, "RETRY_LONGEST_S", 0.1)
    monkeypatch.setattr(module, "WATCH_INTERVAL_S", 0.05)


class Inbox(list[Message]):
    """Collects messages; it is the callback of a subscription."""

    def __call__(self, message: Message) -> None:
        self.append(message)


class FakeServer:
    """Speaks as much of the protocol as a client needs to connect, and keeps what it was sent.

    Attributes:
        received: all bytes of all connections.
        reading: cleared, it stops reading; its clients' sends back up.
        says: written to a client before the answer to its next ping.
    """

    def __init__(self, info: dict[str, Any], answers: bool) -> None:
        self.received = b""
        self.reading = asyncio.Event()
        self.reading.set()
        self.url = ""
        self.says = b""
        self._info = {"server_id": "F", "version": "2.15.1", "headers": True, "max_payload": 1048576, **info}
        self._answers = answers

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._answers:
                writer.write(b"INFO " + json.dumps(self._info).encode() + b"\r\n")
            while data := await reader.read(65536):
                self.received += data
                writer.write(self.says + b"PONG\r\n" * data.count(b"PING\r\n"))
                await self.reading.wait()
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def fake_server(answers: bool = True, port: int = 0, **info: Any) -> AsyncIterator[FakeServer]:
    fake = FakeServer(info, answers)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(fake.serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    fake.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def seed_file(path: Path) -> tuple[str, str]:
    """Write a new user's NKey seed; return the file's name and the public key."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    path.write_bytes(seed)
    return str(path), nkeys.from_seed(bytearray(seed)).public_key.decode()


# --- opening -------------------------------------------------------------------------------------------------------


async def test_open_says_where_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionFailed, match=f"nats://{address}.*(?i:refused|connect call failed)"):
            await NatsConnection.open(ConnectOptions(f"nats://{address}"))


async def test_open_ends_at_its_timeout() -> None:
    async with fake_server(answers=False) as silent:
        with pytest.raises(ConnectionFailed, match=r"no answer within 0\.1 s"):
            await NatsConnection.open(ConnectOptions(silent.url, connect_timeout_s=0.1))


async def test_open_with_wrong_password_fails_and_shows_no_password(start_server: StartServer) -> None:
    server = await start_server(USERS.format(password="right"))
    with pytest.raises(ConnectionFailed, match=r"(?i)authorization violation") as caught:
        await NatsConnection.open(ConnectOptions(server.url, user="alice", password="wrong-secret"))
    assert server.url in str(caught.value)
    assert "wrong-secret" not in str(caught.value) + repr(ConnectOptions(password="wrong-secret"))
    with pytest.raises(ConnectionFailed) as caught:
        await NatsConnection.open(ConnectOptions(server.url.replace("//", "//alice:wrong-secret@")))
    assert "wrong-secret" not in str(caught.value)


async def test_open_with_missing_files_fails(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server()
    missing = str(tmp_path / "missing")
    for options in (ConnectOptions(server.url, nkey_seed_file=missing), ConnectOptions(server.url, tls_ca=missing)):
        with pytest.raises(ConnectionFailed, match="No such file"):
            await NatsConnection.open(options)


async def test_open_with_nkey(start_server: StartServer, connect: Connect, tmp_path: Path) -> None:
    file, public = seed_file(tmp_path / "seed")
    server = await start_server(f"authorization {{ users: [ {{ nkey: {public} }} ] }}")
    connection = await connect(server.url, nkey_seed_file=file)
    await connection.flush()
    other, _ = seed_file(tmp_path / "other")
    with pytest.raises(ConnectionFailed, match=r"(?i)authorization"):
        await NatsConnection.open(ConnectOptions(server.url, nkey_seed_file=other))


async def test_open_with_creds(start_server: StartServer, connect: Connect, tmp_path: Path) -> None:
    config, creds = operator_mode(tmp_path)
    server = await start_server(config)
    connection = await connect(server.url, creds_file=creds)
    await connection.flush()
    with pytest.raises(ConnectionFailed, match=r"(?i)authorization"):
        await NatsConnection.open(ConnectOptions(server.url))


async def test_connection_is_a_transport_with_its_own_inbox(start_server: StartServer, connect: Connect) -> None:
    server = await start_server(max_payload_bytes=2048)
    transport: Transport = await connect(server.url, inbox_prefix="_INBOX_alice")
    prefix, _, unique = transport.inbox_prefix.partition(".")
    assert prefix == "_INBOX_alice"
    assert len(unique) == 22
    assert unique.isalnum()
    assert transport.max_payload == 2048


# --- the traps of NATS and its client -----------------------------------------------------------------------------


async def test_trap_02_headers_count_towards_max_payload(
    start_server: StartServer, connect: Connect, eventually: Eventually
) -> None:
    server = await start_server(max_payload_bytes=2048)
    connection = await connect(server.url)
    inbox = Inbox()
    await connection.subscribe("a", inbox)
    with pytest.raises(TooLarge, match="2048"):
        await connection.publish("a", bytes(2000), headers={"Long": "x" * 100})
    await connection.publish("a", bytes(1900), headers={"Long": "x" * 100})
    await eventually(lambda: len(inbox) == 1)
    assert connection.statistics() == Statistics()


async def test_trap_03_publish_waits_for_a_peer_that_does_not_read(connect: Connect) -> None:
    async with fake_server() as slow:
        connection = await connect(slow.url)
        slow.reading.clear()
        published = 0

        async def flood() -> None:
            nonlocal published
            while published * 65536 < 64 * 1024 * 1024:
                await connection.publish("a", bytes(65536))
                published += 1

        flooding = asyncio.create_task(flood())
        done, _ = await asyncio.wait({flooding}, timeout=0.3)
        assert not done
        # A publish that waits can be cancelled, which nats-py's own swallows.
        flooding.cancel()
        await asyncio.wait({flooding}, timeout=5)
        assert flooding.cancelled()
        slow.reading.set()
        await connection.flush()
        assert slow.received.count(b"PUB a ") in (published, published + 1)


async def test_trap_04_callback_that_raises_is_counted_and_logged(
    start_server: StartServer, connect: Connect, eventually: Eventually
) -> None:
    server = await start_server()
    connection = await connect(server.url)

    def callback(message: Message) -> None:
        raise ValueError("mistake")

    await connection.subscribe("a", callback)
    with capture_logs() as logs:
        for _ in range(5):
            await connection.publish("a", b"")
        await eventually(lambda: connection.statistics().callback_errors == 5)
    assert [(log["subject"], log["count"], str(log["exc_info"])) for log in logs] == [
        ("a", count, "mistake") for count in (1, 2, 4)
    ]


async def test_trap_06_comes_back_after_a_server_restart(
    start_server: StartServer, connect: Connect, eventually: Eventually
) -> None:
    server = await start_server()
    connection = await connect(server.url)
    inbox = Inbox()
    restored: list[Statistics] = []

    def fail() -> None:
        raise ValueError("mistake")

    connection.on_reconnect += [fail, lambda: restored.append(connection.statistics())]
    await connection.subscribe("a.*", inbox, queue="q")
    await server.restart()
    await eventually(lambda: bool(restored))
    assert (restored[0].reconnects, restored[0].rebuilds) == (1, 0)
    await connection.publish("a.b", b"")
    await eventually(lambda: len(inbox) == 1)


async def test_trap_06_rebuilt_when_the_server_closes_for_good(
    start_server: StartServer, connect: Connect, eventually: Eventually
) -> None:
    server = await start_server()
    connection = await connect(server.url)
    inbox, gone, restored = Inbox(), Inbox(), []
    connection.on_reconnect.append(lambda: restored.append(True))
    await connection.subscribe("a", inbox)
    ended = await connection.subscribe("a", gone)
    await ended.unsubscribe()
    for rebuilds in (1, 2):
        # The server answers a message over its limit with an error, and nats-py closes itself for that.
        connection._client._max_payload *= 2
        await connection.publish("a", bytes(connection.max_payload + 1))
        await eventually(lambda: len(restored) == rebuilds)  # noqa: B023
        assert connection.statistics().rebuilds == rebuilds
        await connection.publish("a", b"")
        await eventually(lambda: len(inbox) == rebuilds)  # noqa: B023
    assert gone == []
    assert connection.statistics().reconnects == 0


async def test_trap_06_publish_while_rebuilt_is_refused_and_subscribe_is_kept(
    start_server: StartServer, connect: Connect, eventually: Eventually, quick: None
) -> None:
    server = await start_server(USERS.format(password="one"))
    connection = await connect(server.url, user="alice", password="one")
    await server.restart(USERS.format(password="two"))
    await eventually(lambda: connection.statistics().errors > 4)
    with pytest.raises(Disconnected):
        await connection.publish("open.a", b"")
    with pytest.raises(Disconnected):
        await connection.flush()
    assert connection.statistics().publishes_refused == 1
    inbox, ended = Inbox(), Inbox()
    await connection.subscribe("open.a", inbox)
    await (await connection.subscribe("open.a", ended)).unsubscribe()
    await server.restart(USERS.format(password="one"))
    await eventually(lambda: connection.statistics().rebuilds == 1)
    await connection.publish("open.a", b"")
    await eventually(lambda: len(inbox) == 1)
    assert ended == []


async def test_trap_06_reads_a_replaced_key(
    start_server: StartServer, connect: Connect, eventually: Eventually, quick: None, tmp_path: Path
) -> None:
    config = "authorization {{ users: [ {{ nkey: {} }} ] }}"
    file, public = seed_file(tmp_path / "seed")
    server = await start_server(config.format(public))
    connection = await connect(server.url, nkey_seed_file=file)
    await server.stop()
    _, public = seed_file(tmp_path / "seed")
    await server.start(config.format(public))
    await eventually(lambda: connection.statistics().rebuilds == 1)
    await connection.flush()


async def test_trap_06_rebuilt_when_the_client_ends_without_telling(
    start_server: StartServer, connect: Connect, eventually: Eventually, quick: None
) -> None:
    server = await start_server()
    connection = await connect(server.url)
    inbox = Inbox()
    await connection.subscribe("a", inbox)
    reading = connection._client._reading_task
    assert reading is not None
    reading.cancel()
    await eventually(lambda: connection.statistics().rebuilds == 1)
    await connection.publish("a", b"")
    await eventually(lambda: len(inbox) == 1)


async def test_trap_06_close_ends_a_rebuild_under_way(
    start_server: StartServer, eventually: Eventually, quick: None
) -> None:
    server = await start_server(USERS.format(password="one"))
    connection = await NatsConnection.open(ConnectOptions(server.url, user="alice", password="one"))
    await server.restart(USERS.format(password="two"))
    await eventually(lambda: connection.statistics().errors > 4)
    async with asyncio.timeout(5):
        await connection.close()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "aikoryu-bus-supervisor"] == []


async def test_trap_07_full_buffer_is_disconnected_and_the_kept_arrive(
    start_server: StartServer, connect: Connect, eventually: Eventually
) -> None:
    server = await start_server()
    connection = await connect(server.url)
    inbox = Inbox()
    await connection.subscribe("a", inbox)
    assert not connection.lost
    await server.stop()
    await eventually(lambda: connection.lost)
    for _ in range(31):
        await connection.publish("a", bytes(65536))
    with pytest.raises(Disconnected, match="lost"):
        await connection.publish("a", bytes(2 * 65536))
    with pytest.raises(Disconnected):
        await connection.flush()
    assert connection.statistics().publishes_refused == 1
    await server.start()
    await eventually(lambda: len(inbox) == 31)
    assert not connection.lost


async def test_trap_08_a_flood_is_read_whole_because_callbacks_run_as_it_is_parsed(
    start_server: StartServer, connect: Connect, eventually: Eventually
) -> None:
    server = await start_server()
    sender, receiver = await connect(server.url), await connect(server.url)
    inbox, last = Inbox(), Inbox()
    await receiver.subscribe("a", inbox)
    await receiver.subscribe("last", last)
    await receiver.flush()
    for _ in range(5_000):
        await sender.publish("a", bytes(2_000))
    await sender.publish("last", b"")
    await eventually(lambda: len(last) == 1)
    assert len(inbox) == 5_000
    assert receiver.statistics().slow_consumers == 0


async def test_trap_08_word_of_a_slow_consumer_is_counted(connect: Connect, eventually: Eventually) -> None:
    async with fake_server() as server:
        connection = await connect(server.url)
        server.says = b"-ERR 'Slow Consumer'\r\n"
        with suppress(Disconnected):
            await connection.flush()
        server.says = b""
        await eventually(lambda: connection.statistics().rebuilds == 1)
        assert connection.statistics().slow_consumers == 1


async def test_trap_09_no_responders_is_told_from_an_empty_answer(
    start_server: StartServer, connect: Connect, eventually: Eventually
) -> None:
    server = await start_server()
    connection = await connect(server.url)
    inbox = Inbox()
    await connection.subscribe(f"{connection.inbox_prefix}.>", inbox)
    await connection.publish("nobody", b"question", reply=f"{connection.inbox_prefix}.1")
    await connection.publish(f"{connection.inbox_prefix}.2", b"")
    await connection.publish(f"{connection.inbox_prefix}.3", b"", headers={"Status": "404"})
    await eventually(lambda: len(inbox) == 3)
    assert [(message.subject[-1], no_responders(message)) for message in inbox] == [
        ("1", True),
        ("2", False),
        ("3", False),
    ]


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, str]:
    """PEM files: a certificate authority, a server's and a client's certificates, and a stranger's authority."""
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    for name in ("127.0.0.1", "client@example.org"):
        authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")
    return {
        "ca": str(tmp_path / "ca.pem"),
        "stranger": str(tmp_path / "stranger.pem"),
        "server": str(tmp_path / "127.0.0.1.pem"),
        "client": str(tmp_path / "client@example.org.pem"),
    }


def tls_config(certificates: dict[str, str], more: str = "") -> str:
    return f'tls {{ cert_file: "{certificates["server"]}", key_file: "{certificates["server"]}"{more} }}'


async def test_trap_10_tls(
    start_server: StartServer, connect: Connect, eventually: Eventually, certificates: dict[str, str]
) -> None:
    server = await start_server(tls_config(certificates))
    connection = await connect(server.url, tls_ca=certificates["ca"])
    inbox = Inbox()
    await connection.subscribe("a", inbox)
    await connection.publish("a", bytes(500_000))
    await eventually(lambda: len(inbox) == 1)
    await server.restart(tls_config(certificates))
    await eventually(lambda: connection.statistics().reconnects == 1)
    assert connection._client.is_encrypted
    # A failed handshake ends at once, far within its limit.
    async with asyncio.timeout(3):
        with pytest.raises(ConnectionFailed, match=r"(?i)certificate verify failed"):
            await NatsConnection.open(ConnectOptions(server.url, tls_ca=certificates["stranger"]))
        with pytest.raises(ConnectionFailed, match=r"(?i)certificate verify failed"):
            await NatsConnection.open(ConnectOptions(server.url.replace("nats:", "tls:")))


async def test_trap_10_certificate_of_the_client(
    start_server: StartServer, connect: Connect, certificates: dict[str, str]
) -> None:
    server = await start_server(tls_config(certificates, f', ca_file: "{certificates["ca"]}", verify: true'))
    client, authority = certificates["client"], certificates["ca"]
    connection = await connect(server.url, tls_ca=authority, tls_cert=client, tls_key=client)
    await connection.flush()
    with pytest.raises(ConnectionFailed):
        await NatsConnection.open(ConnectOptions(server.url, tls_ca=authority))


@pytest.mark.parametrize("file", ["tls_ca", "tls_cert", "tls_key"])
def test_trap_10_any_file_of_tls_demands_it(file: str) -> None:
    assert replace(ConnectOptions(), **{file: "some.pem"}).encrypted  # type: ignore[arg-type]
    assert not ConnectOptions().encrypted


@pytest.mark.parametrize("demand", ["url", "tls_ca"])
async def test_trap_10_never_sends_credentials_in_plain_text(certificates: dict[str, str], demand: str) -> None:
    async with fake_server(auth_required=True) as plain:
        url = plain.url.replace("nats:", "tls:") if demand == "url" else plain.url
        authority = certificates["ca"] if demand == "tls_ca" else ""
        with pytest.raises(ConnectionFailed, match="does not speak TLS"):
            await NatsConnection.open(ConnectOptions(url, user="alice", password="secret", tls_ca=authority))
        assert plain.received == b""


async def test_trap_10_never_reconnects_in_plain_text(
    start_server: StartServer,
    connect: Connect,
    eventually: Eventually,
    quick: None,
    certificates: dict[str, str],
) -> None:
    server = await start_server(tls_config(certificates))
    connection = await connect(server.url, user="alice", password="secret", tls_ca=certificates["ca"])
    inbox = Inbox()
    await connection.subscribe("a", inbox)
    await server.stop()
    async with fake_server(port=urlsplit(server.url).port or 0, auth_required=True) as plain:
        before = connection.statistics().errors
        await eventually(lambda: connection.statistics().errors > before + 3)
        assert plain.received == b""
    await server.start(tls_config(certificates))
    await eventually(lambda: connection.statistics().reconnects + connection.statistics().rebuilds > 0)
    await connection.publish("a", b"")
    await eventually(lambda: len(inbox) == 1)


async def test_trap_11_flush_names_a_subscription_that_is_not_permitted(
    start_server: StartServer, connect: Connect, eventually: Eventually
) -> None:
    server = await start_server(USERS.format(password="p"))
    connection = await connect(server.url, user="alice", password="p")
    inbox = Inbox()
    await connection.subscribe("open.a", inbox)
    await connection.flush()
    await connection.subscribe("Secret.>", Inbox())
    await connection.subscribe("secret.b", Inbox(), queue="q")
    with pytest.raises(ConnectionFailed, match=r"subscribe to Secret\.>, secret\.b: allow it"):
        await connection.flush()
    await connection.flush()
    await connection.publish("secret.b", b"")
    await connection.flush()
    assert connection.statistics().permission_errors == 3
    await connection.publish("open.a", b"")
    await eventually(lambda: len(inbox) == 1)


async def test_refused_inbox_names_the_setting(start_server: StartServer, connect: Connect) -> None:
    server = await start_server(USERS.format(password="p"))
    connection = await connect(server.url, user="alice", password="p", inbox_prefix="_INBOX_bob")
    await connection.subscribe(f"{connection.inbox_prefix}.a", Inbox())
    with pytest.raises(ConnectionFailed, match=r"subscribe to _INBOX_bob\..*: set nats\.inbox_prefix to "):
        await connection.flush()


# --- what else 2.16 of the client gets wrong ----------------------------------------------------------------------


async def test_flush_pings_after_what_was_published(connect: Connect) -> None:
    async with fake_server() as server:
        connection = await connect(server.url)
        await connection.subscribe("b", Inbox())
        await connection.publish("a", b"xyz")
        await connection.flush()
        assert server.received.endswith(b"SUB b  1\r\nPUB a  3\r\nxyz\r\nPING\r\n")


def test_what_is_sent_between_a_cut_and_its_being_known_leaves_after_it(quick: None) -> None:
    async def send_at_every_tick() -> int:
        async with EmbeddedServer(ServerSettings(port=0)) as server:
            connection = await NatsConnection.open(ConnectOptions(server.url))
            inbox, restored = Inbox(), asyncio.Event()
            connection.on_reconnect.append(restored.set)
            await connection.subscribe("a", inbox)
            await connection.flush()
            streams: Any = connection._client._transport
            streams._io_writer.transport.abort()
            sent = 0
            while connection._client.is_connected:  # uvloop's transport raises when it is used
                await asyncio.sleep(0)
                connection.send("a", b"")
                assert connection.push()
                sent += 1
            async with asyncio.timeout(10):
                await restored.wait()
                await connection.flush()
            await connection.close()
            return sent - len(inbox)

    assert uvloop.run(send_at_every_tick()) == 0


async def test_flush_that_was_cancelled_leaves_the_connection_whole(
    start_server: StartServer, connect: Connect, eventually: Eventually
) -> None:
    server = await start_server()
    connection = await connect(server.url)
    inbox = Inbox()
    await connection.subscribe("a", inbox)
    for _ in range(3):
        flushing = asyncio.create_task(connection.flush())
        await asyncio.sleep(0)
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
        assert flushing.cancelled()
    await connection.flush()
    await connection.publish("a", b"")
    await eventually(lambda: len(inbox) == 1)
    assert connection.statistics() == Statistics()


async def test_flush_under_way_ends_when_the_connection_is_lost(connect: Connect) -> None:
    async with fake_server() as server:
        connection = await connect(server.url)
        server.reading.clear()
        await connection.publish("a", b"")
        flushing = asyncio.create_task(connection.flush())
        done, _ = await asyncio.wait({flushing}, timeout=0.05)
        # The first ping may still be answered; the one behind it is not.
        if done:
            flushing = asyncio.create_task(connection.flush())
            await asyncio.wait({flushing}, timeout=0.05)
    async with asyncio.timeout(5):
        with pytest.raises(Disconnected):
            await flushing


async def backed_up(connection: NatsConnection, server: FakeServer) -> asyncio.Task[None]:
    """A publish that waits, because the server has stopped to read and both sockets are full."""
    server.reading.clear()

    async def flood() -> None:
        while connection._client.is_connected:
            await connection.publish("a", bytes(1 << 16))

    flooding = asyncio.create_task(flood())
    done, _ = await asyncio.wait({flooding}, timeout=0.3)
    assert not done
    return flooding


async def test_comes_back_from_a_silent_peer_that_does_not_take_what_is_unsent(
    connect: Connect, eventually: Eventually, quick: None
) -> None:
    async with fake_server() as server:
        connection = await connect(server.url)
        flooding = await backed_up(connection, server)
        # As nats-py does when three of its pings had no answer.
        await connection._client._process_op_err(errors.StaleConnectionError())
        async with asyncio.timeout(5):
            await flooding
        server.reading.set()
        await eventually(lambda: connection.statistics().reconnects == 1)
        await connection.flush()


async def test_flush_and_close_end_where_the_peer_takes_nothing(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_server() as server:
        connection = await connect(server.url)
        flooding = await backed_up(connection, server)
        flush = connection._client.flush
        with pytest.raises(errors.FlushTimeoutError):
            await flush(timeout=0.05)
        monkeypatch.setattr(connection._client, "flush", lambda: flush(timeout=0.05))
        async with asyncio.timeout(1.5):
            await connection.close()
            await flooding


@pytest.mark.parametrize("turns", [1, 9], ids=["the supervisor ends", "the server is asked"])
async def test_close_that_is_cancelled_closes_the_socket(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    async with fake_server() as server:
        connection = await connect(server.url)
        monkeypatch.setattr(connection._client, "flush", asyncio.Event().wait)
        streams: Any = connection._client._transport
        closing = asyncio.create_task(connection.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await closing
        assert streams._io_writer.is_closing()


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        (b"PUB a.\xff\xfe 1\r\nx\r\n", "reported"),
        (b"HPUB a.b 16 17\r\nNATS/1.0 \xff\xff\xff\r\n\r\nx\r\n", "delivered"),
    ],
)
async def test_message_that_is_not_utf8_does_not_deafen_the_connection(
    start_server: StartServer, connect: Connect, eventually: Eventually, message: bytes, outcome: str
) -> None:
    server = await start_server()
    connection = await connect(server.url)
    inbox = Inbox()
    await connection.subscribe("a.>", inbox)
    await connection.flush()
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n' + message + b"PUB a.ok 1\r\nx\r\nPING\r\n")
    await reader.readuntil(b"PONG")
    writer.close()
    await writer.wait_closed()
    await eventually(lambda: bool(inbox) and inbox[-1].subject == "a.ok")
    assert len(inbox) == (2 if outcome == "delivered" else 1)
    await eventually(lambda: connection.statistics().errors == int(outcome == "reported"))
    statistics = connection.statistics()
    assert (statistics.reconnects, statistics.rebuilds) == (0, 0)


def operator_mode(folder: Path) -> tuple[str, str]:
    """Configuration of a server that trusts one operator, and the creds file of a user of its one account."""
    keys = {
        kind: nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), prefix)))
        for kind, prefix in {
            "operator": nkeys.PREFIX_BYTE_OPERATOR,
            "account": nkeys.PREFIX_BYTE_ACCOUNT,
            "system": nkeys.PREFIX_BYTE_ACCOUNT,
            "user": nkeys.PREFIX_BYTE_USER,
        }.items()
    }
    public = {kind: key.public_key.decode() for kind, key in keys.items()}

    def token(kind: str, issuer: str, claims: dict[str, Any]) -> str:
        def encoded(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

        body: dict[str, Any] = {"jti": kind, "iat": 1, "iss": public[issuer], "name": kind, "sub": public[kind]}
        body["nats"] = {"type": "account" if kind == "system" else kind, "version": 2, **claims}
        head = encoded(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
        signed = f"{head}.{encoded(json.dumps(body).encode())}"
        return f"{signed}.{encoded(keys[issuer].sign(signed.encode()))}"

    anything = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    limits = {"limits": {**anything, "wildcards": True}}
    user = token("user", "account", {"subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}})
    creds = folder / "user.creds"
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{keys['user'].seed.decode()}\n------END USER NKEY SEED------\n"
    )
    config = f"""
        operator: {token("operator", "operator", {})}
        resolver: MEMORY
        system_account: {public["system"]}
        resolver_preload: {{
            {public["account"]}: {token("account", "operator", limits)}
            {public["system"]}: {token("system", "operator", limits)}
        }}
    """
    return config, str(creds)
