"""Requests to JetStream through a transport: streams, publishes that are acknowledged, messages read back.

Each answer comes to one inbox; a number finds who waits for it. What the server refused was not done. What it did not
answer may have been done: only who asked can find out, so nothing is sent again here.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from base64 import b64decode
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple, Self

from .errors import BusError
from .nats_reader import headers_of
from .transport import Message, Subscription, Transport, no_responders

API = "$JS.API"
TIMEOUT_S = 5.0
# How long an answer may still come after the connection was lost and is back.
GRACE_S = 0.5
SCAN_MESSAGES = 256
SCAN_BYTES = 4 * 2**20

# Error codes of the server, `err_code` of its answers.
STREAM_NAME_IN_USE = 10058
STREAM_NOT_FOUND = 10059
NO_MESSAGE = 10037
STREAM_FULL = 10077
WRONG_LAST_SEQUENCE = (10071, 10164)

EXPECTED_LAST = "Nats-Expected-Last-Subject-Sequence"
TTL = "Nats-TTL"


class Refused(BusError):
    """JetStream refused a request; nothing was done.

    Attributes:
        err_code: the server's number of the error.
    """

    code = "refused"

    def __init__(self, message: str, err_code: int) -> None:
        super().__init__(message)
        self.err_code = err_code


class Unavailable(BusError):
    """No server took the request, so nothing was done: no such stream, no JetStream, or no leader yet."""

    code = "unavailable"


class NoAnswer(BusError):
    """The answer did not come in time, or the connection was lost: what was asked may or may not have been done."""

    code = "no_answer"


class Stored(NamedTuple):
    """A message of a stream; `sequence` is its number there, 1 or more."""

    subject: str
    sequence: int
    data: bytes
    headers: Mapping[str, str]


class JetStream:
    """Asks the JetStream of a connection's server; a context manager, which subscribes its inbox.

    Args:
        transport: the connection; it stays open when this ends.
        timeout_s: longest wait for an answer, s.
    """

    def __init__(self, transport: Transport, timeout_s: float = TIMEOUT_S) -> None:
        self.transport = transport
        self._timeout_s = timeout_s
        self._inbox = f"{transport.inbox_prefix}.js-{secrets.token_hex(6)}"
        self._number = 0
        self._waiting: dict[str, asyncio.Queue[Message | None]] = {}
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self.transport.subscribe(f"{self._inbox}.*", self._on_reply)
        self.transport.on_reconnect.append(self._on_reconnect)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.transport.on_reconnect.remove(self._on_reconnect)
        _give_up(self._waiting.values())
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    async def publish(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None, *, timeout_s: float | None = None
    ) -> int:
        """Put a message into the stream of its subject.

        Returns:
            Its sequence there. The server has it; whether its disk has, `sync_interval` of the server decides.

        Raises:
            Refused, Unavailable, Disconnected, TooLarge, Closed: it is not in the stream.
            NoAnswer: it may be in the stream, now or later.
        """
        return int((await self._ask(subject, payload, headers, timeout_s))["seq"])

    async def api(self, verb: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask the JetStream API: `STREAM.INFO.<stream>`.

        Returns:
            The answer as the server wrote it.

        Raises:
            Refused, Unavailable, Disconnected, Closed: nothing was done.
            NoAnswer: it may have been done.
        """
        return await self._ask(f"{API}.{verb}", json.dumps(body).encode() if body else b"", None, None)

    async def ensure_stream(self, config: Mapping[str, Any], may_differ: Collection[str] = ()) -> None:
        """Make the stream `config["name"]`, unless it is there; keys that `config` leaves out are the operator's.

        Args:
            config: of the stream.
            may_differ: keys that an operator may have changed since.

        Raises:
            Refused: the server does not allow it, or the stream is there and differs in a key that `config` names.
            Unavailable, Disconnected, Closed, NoAnswer: as `api`; ask again.
        """
        name = config["name"]
        try:
            # Looked for first: who uses a stream need not have the right to make it, and would hear no refusal.
            found = (await self.api(f"STREAM.INFO.{name}"))["config"]
        except Refused as refused:
            if refused.err_code != STREAM_NOT_FOUND:
                raise
            await self.api(f"STREAM.CREATE.{name}", config)
            return
        differs = [
            f"{key} is {found.get(key)!r}, not {value!r}"
            for key, value in config.items()
            if value != found.get(key) and key not in may_differ
        ]
        if differs:
            raise Refused(
                f"the stream {name} is there, but {', '.join(differs)}: change it (nats stream edit), or its name",
                STREAM_NAME_IN_USE,
            )

    async def last(self, stream: str, subject: str) -> Stored | None:
        """The last message of a subject, asked of the stream's leader; None if there is none.

        Raises:
            Refused, Unavailable, Disconnected, Closed, NoAnswer: it is not known.
        """
        return await self._get(stream, {"last_by_subj": subject})

    async def next(self, stream: str, subject: str, sequence: int) -> Stored | None:
        """The first message of a subject from `sequence` on, asked of the stream's leader; None if there is none.

        Raises:
            Refused, Unavailable, Disconnected, Closed, NoAnswer: it is not known.
        """
        return await self._get(stream, {"seq": sequence, "next_by_subj": subject})

    async def scan(self, stream: str, subject: str, sequence: int) -> AsyncGenerator[Stored, None]:
        """Messages of a subject from `sequence` on, up to 256 at once; close the iterator (`aclosing`).

        Any replica may answer, so the latest may be missing, and so may one whose delivery failed.

        Raises:
            Refused, Unavailable, Disconnected, Closed, NoAnswer: what came before is right, what follows is not known.
        """
        query = {"seq": sequence, "next_by_subj": subject, "batch": SCAN_MESSAGES, "max_bytes": SCAN_BYTES}
        address = f"{API}.DIRECT.GET.{stream}"
        async with aclosing(self.replies(address, json.dumps(query).encode())) as replies:
            async for message in replies:
                headers = message.headers or {}
                if no_responders(message):
                    raise Unavailable(f"the stream {stream} lets nobody read directly: make it, or wait for its server")
                if (status := headers.get("Status")) in ("204", "404"):
                    return
                if status is not None:
                    raise Refused(f"JetStream refused {address}: {headers.get('Description')}", int(status))
                yield Stored(headers["Nats-Subject"], int(headers["Nats-Sequence"]), message.data, headers)

    async def replies(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None, *, timeout_s: float | None = None
    ) -> AsyncGenerator[Message, None]:
        """Send one request and receive its answers until the caller stops; close the iterator (`aclosing`).

        Args:
            timeout_s: longest wait for each answer, s.

        Raises:
            Disconnected, TooLarge, Closed: nothing was sent.
            NoAnswer: no answer came for `timeout_s`, or the connection was lost meanwhile.
        """
        self._number += 1
        number = str(self._number)
        queue = self._waiting[number] = asyncio.Queue()
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            await self.transport.publish(subject, payload, f"{self._inbox}.{number}", headers)
            while True:
                try:
                    async with asyncio.timeout(wait_s):
                        message = await queue.get()
                except TimeoutError:
                    raise NoAnswer(f"JetStream did not answer on {subject} within {wait_s:g} s: find out") from None
                if message is None:
                    raise NoAnswer(f"the connection was lost before JetStream answered on {subject}: find out")
                yield message
        finally:
            del self._waiting[number]

    async def _ask(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, timeout_s: float | None
    ) -> dict[str, Any]:
        async with aclosing(self.replies(subject, payload, headers, timeout_s=timeout_s)) as replies:
            message = await anext(replies)
        if no_responders(message):
            raise Unavailable(f"no JetStream stream takes {subject}: make the stream, or wait until its server is up")
        answer: dict[str, Any] = json.loads(message.data)
        if error := answer.get("error"):
            text = f"JetStream refused {subject}: {error.get('description', 'no reason given')}"
            err_code = int(error.get("err_code", 0))
            if error.get("code") == 503 and err_code != STREAM_FULL:
                raise Unavailable(f"{text}; try again later")
            raise Refused(text, err_code)
        return answer

    async def _get(self, stream: str, query: dict[str, Any]) -> Stored | None:
        try:
            found = (await self.api(f"STREAM.MSG.GET.{stream}", query))["message"]
        except Refused as refused:
            if refused.err_code == NO_MESSAGE:
                return None
            raise
        headers = headers_of(b64decode(found["hdrs"])) if "hdrs" in found else {}
        return Stored(found["subject"], found["seq"], b64decode(found.get("data", "")), headers)

    def _on_reply(self, message: Message) -> None:
        queue = self._waiting.get(message.subject.rpartition(".")[2])
        if queue is not None:
            queue.put_nowait(message)

    def _on_reconnect(self) -> None:
        # Answers to what was asked before are lost, and who asked need not wait out the time for them. But what was
        # kept until the connection's return, or asked since, may be answered yet.
        asked = list(self._waiting.values())
        asyncio.get_running_loop().call_later(GRACE_S, _give_up, asked)


def _give_up(asked: Iterable[asyncio.Queue[Message | None]]) -> None:
    for queue in asked:
        queue.put_nowait(None)
