"""The service side: frames come in through callbacks that only enqueue, and each is answered once a batch.

A `Held` frame stays until every row of it has been answered, so nothing accepted is lost: at a stop the subscriptions
are drained first, then the frames that are held, then the replies are flushed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

import msgspec
import structlog

from .columns import Column
from .copies import Copies
from .errors import BadFrame, BadReply, BusError, Busy, Disconnected, NoHandler, OperationFailed, TooLarge
from .frames import (
    By,
    Holding,
    Reply,
    Request,
    RowError,
    Run,
    decode_cancel,
    decode_question,
    decode_request,
    encode,
    encode_json,
    error_headers,
    halves,
    is_json,
    row_error,
)
from .open_streams import OpenStream, OpenStreams
from .outgoing import Outgoing
from .subjects import AGENT, Subjects, queue_group
from .transport import Message, Subscription, Transport, no_responders

HEADER_BYTES = 2048  # room for the headers of an error, whose text is bounded
REPLIES_S = 5.0  # for the last replies to leave
COPY = "copy"  # counted beside the codes of errors

_log = structlog.get_logger(__name__)


class Held:
    """A request frame the worker has accepted and not yet answered whole.

    Attributes:
        key: (client, id); frames of nameless clients are numbered here.
        withdrawn: its caller has withdrawn all of it, or seemed to be gone.
        request: the frame.
        endpoint: the operation it came for.
        reply: subject of its answers.
        json: the answers must be JSON.
        arrived: monotonic time of its arrival, s (uvloop's own clock has a resolution of 1 ms).
        deadline: monotonic time after which nobody waits for it, s; infinite if it names none.
        payload_bytes: what holding it costs.
        open: rows not yet answered.
        stream: the stream it is a part of.
        ticket: its place in the queue, kept here for whoever accepted it.
        settled: every row has been answered or let go.
    """

    __slots__ = (
        "arrived",
        "deadline",
        "endpoint",
        "json",
        "key",
        "open",
        "payload_bytes",
        "reply",
        "request",
        "settled",
        "stream",
        "ticket",
        "withdrawn",
    )

    def __init__(
        self, key: tuple[int, int], request: Request, endpoint: Endpoint, message: Message, arrived: float
    ) -> None:
        self.key = key
        self.request = request
        self.endpoint = endpoint
        self.reply = message.reply
        self.json = is_json(message.data)
        self.arrived = arrived
        self.deadline = arrived + request.ttl_ms / 1000 if request.ttl_ms else float("inf")
        self.payload_bytes = len(message.data)
        self.open = request.n
        self.stream: OpenStream | None = None
        self.ticket: Any = None
        self.withdrawn = False
        self.settled = False


Accept = Callable[[Held], None]


@dataclass(slots=True)
class Endpoint:
    """One operation's subject, and what has been asked of it.

    Attributes:
        name: the operation.
        subject: where its frames come in.
        accept: takes each frame that is sound; raises a bus error to refuse it whole.
        requests, errors: frames so far, and those refused or answered with some error.
        answered: frames answered whole.
        processing_s: time from arrival to the last answer, summed over those.
        last_error: the latest error's message.
        metadata: what discovery tells about it.
    """

    name: str
    subject: str
    accept: Accept
    requests: int = 0
    errors: int = 0
    answered: int = 0
    processing_s: float = 0.0
    last_error: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


class Service:
    """The worker's face to the bus.

    Args:
        transport: its connection.
        subjects: the bus's subject tree.
        worker: the worker's id, one subject token.
        reply_prefixes: inbox prefixes that may be answered; a caller can name any subject as its reply.
        user: as which it is known to a server with rights, if it is one of many that serve agents.

    Attributes:
        endpoints: by operation, with their statistics.
        held: frames accepted and not answered whole, by (client, id).
        rejected: frames refused so far, by error code, and those dropped as copies.
        on_cancel: called with each frame held whose caller withdrew, and the rows (none: all).
        why_unanswered: gives the error of a frame that is still held when a stop has no more time. `Busy` has clients
            ask another worker, whatever they asked for.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        worker: str,
        *,
        reply_prefixes: tuple[str, ...],
        user: str = "",
    ) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.held: dict[tuple[int, int], Held] = {}
        self.rejected: dict[str, int] = {}
        self.on_cancel: Callable[[Held, list[int]], None] = lambda held, rows: None
        self.why_unanswered: Callable[[Held], BusError] = lambda held: Busy("the worker stopped: ask again")
        self._transport = transport
        self._subjects = subjects
        self._control = subjects.worker_control(worker, user)
        self._reply_prefixes = tuple(p for prefix in reply_prefixes for p in (f"{prefix}.", f"{prefix}_"))
        self._outgoing = Outgoing(transport)
        self._requests: list[Subscription] = []
        self._controls: list[Subscription] = []
        self._nameless = 0
        self._streams = OpenStreams()
        self._copies = Copies()
        self._idle = asyncio.Event()
        self._probe_inbox = f"{transport.inbox_prefix}.gone"

    async def start(self) -> None:
        """Listen for cancelled rows, for questions what is held, and for word of callers that went away."""
        transport = self._transport
        self._controls.append(await transport.subscribe(self._control, self._on_part))
        self._controls.append(await transport.subscribe(self._subjects.control, self._on_control))
        self._controls.append(await transport.subscribe(f"{self._probe_inbox}.*", self._on_gone))

    async def serve(
        self,
        name: str,
        accept: Accept,
        metadata: dict[str, str] | None = None,
        endings: Sequence[str] = ("",),
    ) -> None:
        """Take frames of one operation from now on.

        Args:
            name: the operation.
            accept: takes each frame that is sound.
            metadata: what discovery tells about it.
            endings: what follows the name in the subjects it listens to: nothing, or a partition, `.7` or `.*`.
        """
        subject = self._subjects.operation(name)
        endpoint = Endpoint(name, subject + endings[0], accept, metadata=metadata or {})
        self.endpoints[name] = endpoint
        on_message = partial(self._on_request, endpoint)
        for ending in endings:
            subscription = await self._transport.subscribe(subject + ending, on_message, queue=queue_group(name))
            self._requests.append(subscription)

    async def serve_handlers(self, name: str, accept: Accept, metadata: Mapping[str, dict[str, str]]) -> None:
        """Take frames for the handlers of one agent from now on: each for one process that has it, or for all.

        Two subscriptions an agent, however many handlers it has: a process may have thousands of agents.

        Args:
            name: the agent.
            accept: takes each frame that is sound.
            metadata: what discovery tells about each handler, by its name.
        """
        subject = self._subjects.agent(name)
        for handler, told in metadata.items():
            endpoint = Endpoint(f"{AGENT}.{name}.{handler}", f"{subject}.{handler}", accept, metadata=told)
            self.endpoints[endpoint.name] = endpoint
        on_message = partial(self._on_handler, f"{AGENT}.{name}.")
        group = queue_group(f"{AGENT}.{name}")
        self._requests.append(await self._transport.subscribe(f"{subject}.*", on_message, queue=group))
        self._requests.append(await self._transport.subscribe(f"{subject}.all.*", on_message))

    async def serve_partition(self, name: str, partition: int) -> Subscription:
        """Take frames for one partition of an agent with state, whose only owner this process is.

        Returns:
            The subscription, to be ended when the partition goes to another.
        """
        on_message = partial(self._on_handler, f"{AGENT}.{name}.", place=-2)
        return await self._transport.subscribe(f"{self._subjects.agent(name)}.*.{partition}", on_message)

    async def serve_owned(self, system: str, accepts: Mapping[str, Accept], key: str) -> Subscription:
        """Take frames of a system's operations on one key, whose only owner this process is.

        Args:
            system: first token of the operations.
            accepts: takes each frame that is sound, by the operation's second token.
            key: one subject token.

        Returns:
            The subscription, to be ended when the key goes to another.
        """
        subjects = {token: self._subjects.operation(f"{system}.{token}.{key}") for token in accepts}
        endpoints = {t: Endpoint(f"{system}.{t}", subjects[t], accept) for t, accept in accepts.items()}

        def on_message(message: Message) -> None:
            token = message.subject.split(".")[-2]
            endpoint = endpoints.get(token)
            if endpoint is not None:
                self._on_request(endpoint, message)
            elif (request := self._decode(None, message)) is not None:
                error = NoHandler(f"{system} has no operation {token!r}: it has {', '.join(sorted(accepts))}")
                self._refuse(None, message, error, request)

        return await self._transport.subscribe(f"{self._subjects.root}.{system}.*.{key}", on_message)

    def answer(
        self,
        held: Held,
        at: list[Run],
        columns: dict[str, Column],
        errors: list[RowError],
        by: By | None = None,
    ) -> None:
        """Answer some rows of a frame: those of `at` with `columns`, those of `errors` with their error.

        An answer larger than the bus takes leaves in parts. The columns' bytes are copied before this returns.
        """
        if held.settled:
            return  # it was answered whole when the drain had no more time
        request = held.request
        for _, count in at:
            held.open -= count
        for error in errors:
            held.open -= error.n
        last = held.open <= 0
        again = request.again
        reply = Reply(id=request.id, at=at, cols=columns, err=errors, by=by, seq=request.seq, again=again, last=last)
        self._send(held, reply)
        if errors:
            held.endpoint.errors += 1
            held.endpoint.last_error = errors[-1].msg
        if held.open <= 0:
            self._forget(held)

    def _send(self, held: Held, reply: Reply) -> None:
        payload = encode_json(reply) if held.json else encode(reply)
        largest = self._transport.max_payload
        if len(payload) <= largest - HEADER_BYTES:
            headers = error_headers(reply.err[0]) if reply.err and not reply.at else None
            self._outgoing.send(held.reply, payload, headers=headers)
            return
        parts = halves(reply)
        if parts is not None:
            for part in parts:
                self._send(held, part)
            return
        ((row, count),) = reply.at or [(error.row, error.n) for error in reply.err]
        too_large = TooLarge(f"the answer of one row is {len(payload)} bytes, the server takes {largest}: ask for less")
        held.endpoint.errors += 1
        held.endpoint.last_error = str(too_large)
        self._send(held, msgspec.structs.replace(reply, at=[], cols={}, err=[row_error(too_large, row, count)]))

    def fail(self, held: Held, error: BusError) -> None:
        """Answer every row of a frame, none of which has been answered, with one error."""
        self.count_rejection(error.code)
        self.answer(held, [], {}, [row_error(error, 0, held.request.n)])

    def drop(self, held: Held, rows: int) -> None:
        """Let go of rows whose caller no longer waits; nothing is sent."""
        if held.settled:
            return
        held.open -= rows
        if held.open <= 0:
            self._forget(held)

    def probe(self, held: Held) -> None:
        """Ask whether the frame's caller still listens; if not, all its frames are withdrawn as if it had said so.

        Only for clients of this SDK: an empty message would be the answer to anybody else. The server itself answers
        for a subject without listeners (no responders), within a millisecond.
        """
        self._outgoing.send(held.reply, b"", f"{self._probe_inbox}.{held.request.client}")

    async def leave(self) -> None:
        """Take no new requests: leave every queue group at once. What the server has sent already is accepted."""
        requests, self._requests = self._requests, []
        await asyncio.gather(*(subscription.drain() for subscription in requests))

    async def drain(self, timeout_s: float) -> bool:
        """Stop in the order that loses nothing: requests, frames held, control messages, replies.

        Frames still held after `timeout_s` seconds are answered as `why_unanswered` says.

        Returns:
            False if there were any, or the connection was lost before the last replies had left.
        """
        await self.leave()
        drained = True
        try:
            async with asyncio.timeout(timeout_s):
                while self.held:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            drained = False
            _log.warning("frames still held at the end of the drain", frames=len(self.held))
            for held in list(self.held.values()):
                self.fail(held, self.why_unanswered(held))
        # Until here callers could still withdraw, and send parts of the streams they had opened.
        await asyncio.gather(*(subscription.drain() for subscription in self._controls))
        try:
            async with asyncio.timeout(REPLIES_S):
                await self._outgoing.drain()
                await self._transport.flush()
        except (Disconnected, TimeoutError):
            return False
        return drained

    @property
    def backlog_bytes(self) -> int:
        """Replies that the connection has not taken yet, bytes."""
        return self._outgoing.backlog_bytes

    def may_answer(self, reply: str) -> bool:
        """Whether a subject that somebody named for the answer is one of the inboxes served here."""
        return reply.startswith(self._reply_prefixes)

    def count_rejection(self, code: str) -> None:
        """Count one frame or row that was refused."""
        self.rejected[code] = self.rejected.get(code, 0) + 1

    def _on_request(self, endpoint: Endpoint, message: Message) -> None:
        """A frame on an operation's subject: refuse it, open a stream, or accept it."""
        endpoint.requests += 1
        request = self._decode(endpoint, message)
        if request is None:
            return
        if request.stream and request.n == 0:
            self._open_stream(endpoint, request, message)
            return
        self._accept(endpoint, request, message)

    def _on_handler(self, agent: str, message: Message, place: int = -1) -> None:
        """A frame for one of an agent's handlers, whose name is the subject's token of that place."""
        handler = message.subject.split(".")[place]
        endpoint = self.endpoints.get(agent + handler)
        if endpoint is not None:
            self._on_request(endpoint, message)
            return
        request = self._decode(None, message)
        if request is not None:
            there = sorted(name.removeprefix(agent) for name in self.endpoints if name.startswith(agent))
            error = NoHandler(f"{agent[:-1]} has no handler {handler!r}: it has {', '.join(there) or 'none'}")
            self._refuse(None, message, error, request)

    def _on_part(self, message: Message) -> None:
        """A frame on this worker's own subject: a part of a stream opened here."""
        request = self._decode(None, message)
        if request is None:
            return
        stream = self._streams.find(request.client, request.stream)
        if stream is None:
            self._refuse(None, message, BadFrame("no such stream is open on this worker: open it again"), request)
        elif (refusal := stream.refusal(request.n)) is not None:
            self._refuse(stream.endpoint, message, refusal, request)
        else:
            stream.endpoint.requests += 1
            self._accept(stream.endpoint, request, message, stream)
        if request.last:
            self._streams.close(request.client, request.stream)

    def _decode(self, endpoint: Endpoint | None, message: Message) -> Request | None:
        """The frame, if it is one and no copy."""
        if not self.may_answer(message.reply):
            error = BadReply(f"reply subject {message.reply!r} is not under {' or '.join(self._reply_prefixes)}")
            self._refuse(endpoint, message, error)
            return None
        try:
            request = decode_request(message.data)
        except BusError as error:
            self._refuse(endpoint, message, error)
            return None
        if request.client and self._copies.is_copy(request, message.reply):
            self.count_rejection(COPY)
            return None
        return request

    def _accept(self, endpoint: Endpoint, request: Request, message: Message, stream: OpenStream | None = None) -> None:
        if request.n == 0:
            self._refuse(endpoint, message, BadFrame("n is 0: a frame needs at least one row"), request)
            return
        if request.client:
            key = (request.client, request.id)
            held = self.held.get(key)
            if held is not None and held.reply == message.reply:
                if held.open == request.n and not held.withdrawn:
                    held.request.again = request.again
                    return  # sent again, and its rows are all under way
                # Answers of some may be lost, or all were let go: this frame takes its place and runs them again.
            elif held is not None:  # another client of the same number
                key = self._nameless_key()
        else:
            key = self._nameless_key()
        held = Held(key, request, endpoint, message, monotonic())
        self.held[key] = held
        if stream is not None:
            held.stream = stream
            stream.open_rows += request.n
        try:
            endpoint.accept(held)
        except BusError as error:
            self.fail(held, error)
        except Exception:
            _log.exception("frame refused by a defect", operation=endpoint.name)
            self.fail(held, OperationFailed("the worker could not take the frame; its log holds the reason"))

    def _nameless_key(self) -> tuple[int, int]:
        self._nameless += 1
        return (0, self._nameless)

    def _open_stream(self, endpoint: Endpoint, request: Request, message: Message) -> None:
        if not request.client:
            self._refuse(endpoint, message, BadFrame("a stream needs the number of its client"), request)
            return
        credit = self._streams.open(request.client, request.stream, endpoint)
        opened = Reply(id=request.id, ctl=self._control, credit=credit, last=True)
        self._outgoing.send(message.reply, encode_json(opened) if is_json(message.data) else encode(opened))

    def _refuse(
        self, endpoint: Endpoint | None, message: Message, error: BusError, request: Request | None = None
    ) -> None:
        """Answer a frame that was never held with an error, where it may be answered at all."""
        self.count_rejection(error.code)
        if endpoint is not None:
            endpoint.errors += 1
            endpoint.last_error = row_error(error).msg
        if isinstance(error, BadReply):
            count = self.rejected[error.code]
            if count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th: a flood of frames is not a flood of lines
                _log.warning("frame dropped", count=count, subject=message.subject, error=row_error(error).msg)
            return
        refused = row_error(error)
        reply = Reply(id=0, err=[refused], last=True)
        if request is not None:
            reply.id, reply.again = request.id, request.again
        payload = encode_json(reply) if is_json(message.data) else encode(reply)
        self._outgoing.send(message.reply, payload, headers=error_headers(refused))

    def _on_control(self, message: Message) -> None:
        """Word for every worker: what asks for an answer is a question, else something is withdrawn."""
        try:
            if message.reply:
                self._on_question(message)
            else:
                self._on_cancel(message)
        except BusError as error:
            self.count_rejection(error.code)

    def _on_question(self, message: Message) -> None:
        """Say which of a client's frames are held; after the replies made before, so what is not held has left."""
        if not self.may_answer(message.reply):
            raise BadReply(f"reply subject {message.reply!r} is not under {' or '.join(self._reply_prefixes)}")
        question = decode_question(message.data)
        ids = [id_ for id_ in question.ids if self._holds((question.client, id_))]
        if ids:
            self._outgoing.send(message.reply, encode(Holding(ids)))

    def _holds(self, key: tuple[int, int]) -> bool:
        held = self.held.get(key)
        return held is not None and not held.withdrawn

    def _on_cancel(self, message: Message) -> None:
        cancel = decode_cancel(message.data)
        if cancel.stream:
            self._streams.close(cancel.client, cancel.stream)
        held = self.held.get((cancel.client, cancel.id))
        if held is not None:
            self._withdraw(held, cancel.rows)

    def _on_gone(self, message: Message) -> None:
        """The server says that nobody listens to a reply subject any more."""
        if no_responders(message):
            client = message.subject.rpartition(".")[2]
            if client.isdecimal():
                self._streams.close_of(int(client))
            for held in [held for (number, _), held in self.held.items() if str(number) == client]:
                self._withdraw(held, [])

    def _withdraw(self, held: Held, rows: list[int]) -> None:
        held.withdrawn = held.withdrawn or not rows
        self.on_cancel(held, rows)

    def _forget(self, held: Held) -> None:
        if self.held.get(held.key) is held:
            del self.held[held.key]
        held.settled = True
        held.ticket = None  # which holds this frame: no cycle is left for the collector
        held.endpoint.answered += 1
        held.endpoint.processing_s += monotonic() - held.arrived
        if held.stream is not None:
            held.stream.open_rows -= held.request.n
        if not self.held:
            self._idle.set()
