"""Faults at run time: whoever may asks every worker to misbehave, and each says whether it will.

A message to the subject `faults` replaces all rules; none ends them. It is {v, rules: [text]} in MessagePack or JSON,
and so are the answers, {v, worker, rules, injected, code, message}: what is in force there now, what came of rules so
far, and why the rules are not what was asked for.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

import msgspec
import structlog

from ..config.settings import FaultSettings
from .errors import BadFrame, BadVersion, BusError, Refused
from .faults import Rule, parse
from .outgoing import Outgoing
from .subjects import Subjects
from .transport import Message, Subscription, Transport, no_responders

VERSION = 1

_log = structlog.get_logger(__name__)

Injected = Callable[[], Mapping[str, int]]
"""Tells how often something went wrong so far, by kind: on this connection, and in the engine that fronts share."""

Apply = Callable[[str, list[Rule]], None]
"""Takes the rules in force from now on, and before them a name for the order, the same in all processes it reached."""


class Order(msgspec.Struct):
    """To every worker: the rules in force from now on."""

    rules: list[str]
    v: int = VERSION


class Answer(msgspec.Struct):
    """What a worker says to it.

    Attributes:
        worker: its id; each front has one.
        rules: what is in force there now.
        injected: how often something went wrong so far, by kind; an engine's word is up to a second old, and begins
            anew with each process.
        code, message: why the rules are not what was asked for; empty if they are.
    """

    worker: str
    rules: list[str] = []
    injected: dict[str, int] = {}
    code: str = ""
    message: str = ""
    v: int = VERSION


class FaultControl:
    """The worker's side.

    Args:
        transport: the connection itself: an order that ends faults must not be lost to them.
        subjects: the bus's subject tree.
        worker: its id.
        settings: whether faults may be injected here, and which are in force from the start.
        may_answer: whether a reply subject may be answered.
        apply: puts rules in force.
        injected: what came of them.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        worker: str,
        settings: FaultSettings,
        may_answer: Callable[[str], bool],
        apply: Apply,
        injected: Injected,
    ) -> None:
        self._transport = transport
        self._outgoing = Outgoing(transport)
        self._subjects = subjects
        self._worker = worker
        self._settings = settings
        self._may_answer = may_answer
        self._apply = apply
        self._injected = injected
        self._rules: list[str] = []
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Put the settings' rules in force, then listen.

        Raises:
            Refused: there are some, but faults are off.
            BadParameter: one of them is no rule.
        """
        if self._settings.rules:
            if not self._settings.enabled:
                raise Refused(
                    "faults.rules are set while faults are off: remove them, or set faults.enabled=true as well"
                )
            self._put("settings", self._settings.rules)
        if self._settings.enabled:
            _log.warning("this worker misbehaves when it is asked to: faults.enabled is set", rules=self._rules)
        self._subscription = await self._transport.subscribe(self._subjects.faults, self._on_message)

    async def stop(self) -> None:
        """Listen no more."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        await self._outgoing.drain()

    def _on_message(self, message: Message) -> None:
        answer = Answer(self._worker)
        try:
            if not self._settings.enabled:
                raise Refused("faults are off on this worker: set faults.enabled=true, on a deployment that may fail")
            # The reply subject is the same for all who were asked.
            self._put(message.reply or secrets.token_hex(8), _decode(message.data))
        except BusError as error:
            answer.code, answer.message = error.code, str(error)
        answer.rules, answer.injected = self._rules, dict(self._injected())
        # A reply subject is anyone's to choose: an answer to an operation's would be a request of the worker.
        if self._may_answer(message.reply):
            encode = msgspec.json.encode if message.data.startswith(b"{") else msgspec.msgpack.encode
            self._outgoing.send(message.reply, encode(answer))

    def _put(self, name: str, texts: Sequence[str]) -> None:
        now = monotonic()
        self._apply(name, [parse(text, now) for text in texts])
        self._rules = list(texts)


async def inject(transport: Transport, subjects: Subjects, rules: Sequence[str], timeout_s: float) -> list[Answer]:
    """Ask every worker to do wrong what the rules say, and nothing else; without rules, to stop it.

    Args:
        transport: the connection of who asks.
        subjects: the bus's subject tree.
        rules: as text, see `faults`.
        timeout_s: how long answers are waited for: nobody knows how many there will be.

    Returns:
        What each front that answered says, by name; nothing, at once, where nobody listens.

    Raises:
        BadParameter: one of the rules is none; nobody was asked.
    """
    for text in rules:
        parse(text, 0.0)
    answers: list[Answer] = []
    nobody = asyncio.Event()

    def on_answer(message: Message) -> None:
        if no_responders(message):
            nobody.set()
        else:
            answers.append(msgspec.msgpack.decode(message.data, type=Answer))

    inbox = f"{transport.inbox_prefix}.faults-{secrets.token_hex(8)}"
    subscription = await transport.subscribe(inbox, on_answer)
    try:
        await transport.publish(subjects.faults, msgspec.msgpack.encode(Order(list(rules))), inbox)
        async with asyncio.timeout(timeout_s):
            await nobody.wait()
    except TimeoutError:
        pass
    finally:
        await subscription.unsubscribe()
    return sorted(answers, key=lambda answer: answer.worker)


def _decode(payload: bytes) -> list[str]:
    decode = msgspec.json.decode if payload.startswith(b"{") else msgspec.msgpack.decode
    try:
        order = decode(payload, type=Order)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFrame(f"no order to inject faults: {error}: send {{v: 1, rules: [text]}}") from None
    if order.v != VERSION:
        raise BadVersion(f"the order is of version {order.v}, this worker speaks {VERSION}")
    return order.rules
