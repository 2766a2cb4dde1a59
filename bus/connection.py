"""The connection to a NATS server: supervised, so that only this process ends it.

nats-py comes back from a lost socket by itself, with the subscriptions and up to 2 MiB of what was published meanwhile.
Anything else (an expired credential, a protocol error, an exception in its own tasks) ends its client for good; then
`NatsConnection` builds a new one, reading credentials and certificates afresh, and makes every subscription again.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import structlog
from nats import errors
from nats.aio.client import Server
from nats.aio.subscription import Subscription as ClientSubscription
from nats.nuid import NUID

from .errors import BadParameter, BusError, Closed, ConnectionFailed, Disconnected, TooLarge
from .nats_client import NatsClient
from .options import ConnectOptions
from .transport import OUTBOX_BYTES, Callback, Message, check_interest

# A peer that falls silent without closing its socket is noticed after three of these: nats-py's 120 s make six minutes.
PING_INTERVAL_S = 20

# nats-py can end without telling (its close fails half-way, its reader dies): so it is looked at, too.
WATCH_INTERVAL_S = 1.0

RETRY_FIRST_S = 0.05
RETRY_LONGEST_S = 5.0

_SUBSCRIBE_DENIED = "permissions violation for subscription to "

_log = structlog.get_logger(__name__)


class Statistics(NamedTuple):
    """What happened to a connection since it was opened; every field is a count.

    Attributes:
        reconnects: times nats-py came back by itself.
        rebuilds: times a new client had to be built.
        slow_consumers: times the server, or nats-py, dropped messages because they were not read fast enough.
        permission_errors: subscriptions and publishes that the server refused to this user.
        callback_errors: exceptions that left a subscription's callback.
        publishes_refused: publishes that raised `Disconnected`.
        errors: every other error of the connection.
    """

    reconnects: int = 0
    rebuilds: int = 0
    slow_consumers: int = 0
    permission_errors: int = 0
    callback_errors: int = 0
    publishes_refused: int = 0
    errors: int = 0


class NatsConnection:
    """A `Transport` on nats-py; `open` makes one.

    While the connection is lost, `publish` keeps up to 2 MiB for later and then raises `Disconnected`; a rebuild keeps
    nothing. What was under way when it was lost may or may not have arrived.
    """

    def __init__(self, options: ConnectOptions) -> None:
        self.max_payload = 0
        self.inbox_prefix = f"{options.inbox_prefix}.{NUID().next().decode()}"
        self.on_reconnect: list[Callable[[], None]] = []
        self._options = options
        self._subscriptions: dict[NatsSubscription, None] = {}
        self._denied: list[str] = []
        self._counts = Statistics()._asdict()
        self._closed = False
        self._wake = asyncio.Event()
        self._client: NatsClient
        self._supervisor: asyncio.Task[None]

    @classmethod
    async def open(cls, options: ConnectOptions) -> NatsConnection:
        """Connect; the first attempt is the only one, later losses are mended for ever.

        Raises:
            ConnectionFailed: nobody listens, the credentials or certificates were refused, the server does not speak
                TLS though it was demanded, or `connect_timeout_s` passed. Nothing is left open.
        """
        connection = cls(options)
        connection._client = await connection._connect()
        connection.max_payload = connection._client.max_payload
        connection._supervisor = asyncio.create_task(connection._supervise(), name="aikoryu-bus-supervisor")
        return connection

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send one message; waits only when 2 MiB are ahead of the socket, so yield between large ones.

        The subject and reply are not checked: they come from `Subjects`.

        Raises:
            TooLarge, Closed: as every transport.
            BadParameter: no subject, or a header's name has characters that are not allowed.
            Disconnected: the connection is lost and the buffer for later is full; nothing was sent.
        """
        self.send(subject, payload, reply, headers)
        if not self.push():
            await self.writable()

    def send(self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Line a message up for the next `push`. Raises as `publish` does."""
        try:
            self._client.send(subject, payload, reply, headers)
        except errors.Error as error:
            raise self._refused(error) from error

    def push(self) -> bool:
        """Hand what was sent to the socket; false if so much is ahead of it that the caller should await `writable`."""
        return self._client.push()

    async def writable(self) -> None:
        """Wait until the socket has taken most of what was pushed."""
        await self._client.writable()

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> NatsSubscription:
        """Receive messages; a refusal by the server shows at the next `flush`.

        Raises:
            BadParameter: the subject or queue is not a valid one.
            Closed: the connection was closed by this process.
        """
        if self._closed:
            raise self._mapped(errors.ConnectionClosedError())
        check_interest(subject, queue)
        subscription = NatsSubscription(self, subject, queue, self._delivery(subject, callback))
        self._subscriptions[subscription] = None
        # Closed by the server: the rebuild under way makes this subscription with the others.
        with suppress(errors.ConnectionClosedError):
            await subscription.attach(self._client)
        return subscription

    async def flush(self) -> None:
        """Return when the server has processed everything published and subscribed so far.

        Raises:
            ConnectionFailed: the server refused subscriptions, named in the message, since the last flush.
            Disconnected: the connection is lost, or was lost meanwhile.
            Closed: the connection was closed by this process.
        """
        try:
            await self._client.flush()
        except (errors.Error, OSError) as error:
            raise self._mapped(error) from error
        if self._denied:
            denied, self._denied = self._denied, []
            inbox = any(subject.startswith(self.inbox_prefix) for subject in denied)
            remedy = "set nats.inbox_prefix to this user's, or allow it" if inbox else "allow it"
            named = ", ".join(denied)
            raise ConnectionFailed(f"{self._options.address} does not let this user subscribe to {named}: {remedy}")

    async def close(self) -> None:
        """Flush what was published, then close; cancelled, close at once. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._supervisor.cancel()
        try:
            await asyncio.wait({self._supervisor})
            with suppress(errors.Error, OSError):
                await self._client.flush()
        finally:
            # Left open, the socket has uvloop's loop wait for ever as it closes, where warnings are errors.
            await self._client.abandon()
            self._subscriptions.clear()

    @property
    def lost(self) -> bool:
        """Whether the connection is known to be lost, and not restored yet."""
        return not self._client.is_connected

    def cut(self) -> None:
        """Lose the connection as if the network did: for fault injection. It comes back as from any loss."""
        self._client.cut()

    def statistics(self) -> Statistics:
        """What happened so far."""
        return Statistics(**self._counts)

    def forget(self, subscription: NatsSubscription) -> None:
        """Do not make this subscription again."""
        self._subscriptions.pop(subscription, None)

    async def _connect(self) -> NatsClient:
        options = self._options
        client = NatsClient(options.encrypted)
        live = False

        async def on_error(error: Exception) -> None:
            if not live:
                # nats-py would retry the first connection for ever; an exception that is not its own gets out.
                raise _failed(options, error) from error
            self._on_error(client, error)

        async def on_disconnected() -> None:
            self._denied.clear()
            client.cancel_pongs()
            if live and not self._closed:
                _log.warning("connection lost", server=options.address)

        async def on_reconnected() -> None:
            self._counts["reconnects"] += 1
            self._restored()

        async def on_closed() -> None:
            self._wake.set()

        try:
            async with asyncio.timeout(options.connect_timeout_s):
                await client.connect(
                    options.url,
                    error_cb=on_error,
                    disconnected_cb=on_disconnected,
                    reconnected_cb=on_reconnected,
                    closed_cb=on_closed,
                    name=options.name,
                    # nats-py wants whole seconds by its annotation only.
                    connect_timeout=options.connect_timeout_s,  # type: ignore[arg-type]
                    max_reconnect_attempts=-1,
                    reconnect_to_server_handler=_next_server,
                    ping_interval=PING_INTERVAL_S,
                    flusher_queue_size=0,
                    pending_size=OUTBOX_BYTES,
                    skip_subject_validation=True,
                    inbox_prefix=self.inbox_prefix,
                    user=options.user or None,
                    password=options.password or None,
                    nkeys_seed=options.nkey_seed_file or None,
                    user_credentials=options.creds_file or None,
                    tls=options.tls_context(),
                )
            if not client.is_connected:
                raise errors.UnexpectedEOF
            if options.encrypted and not client.is_encrypted:
                raise errors.SecureConnWantedError
        except BaseException as error:
            await client.abandon()
            if isinstance(error, BusError) or not isinstance(error, Exception):
                raise
            raise _failed(options, error) from error
        live = True
        return client

    async def _supervise(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_INTERVAL_S):
                    await self._wake.wait()
            self._wake.clear()
            if self._client.is_dead:
                if self._client.last_error is not None:
                    self._on_error(self._client, self._client.last_error)
                await self._rebuild()

    async def _rebuild(self) -> None:
        await self._client.abandon()
        attempt = 0
        while True:
            try:
                self._client = await self._resubscribed(await self._connect())
            except Exception as error:
                self._count("errors", "connection not rebuilt", error=str(error))
                await asyncio.sleep(_retry_s(attempt))
                attempt += 1
            else:
                self._counts["rebuilds"] += 1
                self._restored()
                return

    async def _resubscribed(self, client: NatsClient) -> NatsClient:
        try:
            # Until none is left: others may be added meanwhile, and the caller takes the client over without a wait.
            while behind := [subscription for subscription in self._subscriptions if subscription.client is not client]:
                for subscription in behind:
                    await subscription.attach(client)
                await client.flush()
        except BaseException:
            await client.abandon()
            raise
        return client

    def _restored(self) -> None:
        self.max_payload = self._client.max_payload
        _log.info("connection restored", server=self._options.address)
        for restored in list(self.on_reconnect):
            try:
                restored()
            except Exception as error:
                self._count("callback_errors", "on_reconnect failed", exc_info=error)

    def _delivery(self, subject: str, callback: Callback) -> Callback:
        def deliver(message: Message) -> None:
            try:
                callback(message)
            # Cancelled as well: it comes from the callback (the result of a cancelled future), and the reader that
            # calls it would take it for its own.
            except (Exception, asyncio.CancelledError) as error:
                self._count("callback_errors", "callback failed", subject=subject, exc_info=error)

        return deliver

    def _on_error(self, client: NatsClient, error: Exception) -> None:
        text = str(error)
        if isinstance(error, errors.SlowConsumerError) or "slow consumer" in text.lower():
            self._count("slow_consumers", "messages dropped: they are not read fast enough", error=text)
        elif "permissions violation" in text:
            self._count("permission_errors", "server refused", error=text)
            if _SUBSCRIBE_DENIED in text:
                # The server's text comes in lower case.
                named = [each.subject for each in self._subscriptions if f'to "{each.subject.lower()}"' in text]
                self._denied.append(named[0] if named else text)
        else:
            self._count("errors", "connection error", error=text or type(error).__name__)
            if not client.is_connected and ("authorization" in text.lower() or isinstance(error, ssl.SSLError)):
                client.refused = True
                self._wake.set()

    def _count(self, name: str, event: str, **fields: object) -> None:
        count = self._counts[name] = self._counts[name] + 1
        # The 1st, 2nd, 4th, 8th: a flood of errors is not a flood of lines.
        if count & (count - 1) == 0:
            _log.warning(event, server=self._options.address, count=count, **fields)

    def _refused(self, error: errors.Error) -> BusError:
        mapped = self._mapped(error)
        if isinstance(mapped, Disconnected):
            self._count("publishes_refused", "publish refused", error=str(error))
        return mapped

    def _mapped(self, error: Exception) -> BusError:
        """What an error of nats-py or of the socket is called on this bus."""
        address = self._options.address
        if isinstance(error, errors.MaxPayloadError):
            return TooLarge(f"headers and payload exceed {self.max_payload} bytes, the server's max_payload: send less")
        if isinstance(error, errors.BadSubjectError):
            return BadParameter("a message needs a subject")
        if self._closed:
            return Closed(f"the connection to {address} was closed by this process")
        return Disconnected(f"the connection to {address} is lost and being restored ({error}): try again later")


class NatsSubscription:
    """One subscription, made again on each new client."""

    def __init__(
        self,
        connection: NatsConnection,
        subject: str,
        queue: str,
        deliver: Callback,
    ) -> None:
        self.subject = subject
        self.client: NatsClient | None = None
        self._connection = connection
        self._queue = queue
        self._deliver = deliver
        self._inner: ClientSubscription | None = None

    async def attach(self, client: NatsClient) -> None:
        """Make the subscription on this client."""
        self.client = client
        self._inner = await client.listen(self.subject, self._queue, self._deliver)

    async def unsubscribe(self) -> None:
        """Stop now; messages not yet handed to the callback are lost. Idempotent."""
        inner = self._end()
        if inner is not None and self.client is not None:
            await self.client.silence(inner)

    async def drain(self) -> None:
        """Take no new messages; return when every message already received has been handed to the callback."""
        inner = self._end()
        if inner is not None and self.client is not None:
            await self.client.drain_subscription(inner)

    def _end(self) -> ClientSubscription | None:
        self._connection.forget(self)
        inner, self._inner = self._inner, None
        return inner


def _failed(options: ConnectOptions, error: Exception) -> ConnectionFailed:
    if isinstance(error, TimeoutError):
        reason = f"no answer within {options.connect_timeout_s:g} s"
    elif isinstance(error, errors.SecureConnWantedError):
        reason = "it does not speak TLS, which these settings demand; nothing secret was sent"
    else:
        reason = str(error) or type(error).__name__
    return ConnectionFailed(f"cannot connect to {options.address}: {reason}. Start a server, or correct the settings")


def _next_server(servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
    """Which server of the cluster nats-py tries next, and how long it waits before that, s."""
    server = min(servers, key=lambda each: each.reconnects)
    return server, _retry_s(server.reconnects)


def _retry_s(attempt: int) -> float:
    # Half of it random: a thousand agents that lost one server do not come back in one instant.
    return min(RETRY_LONGEST_S, RETRY_FIRST_S * 2.0 ** min(attempt, 16)) * random.uniform(0.5, 1.0)
