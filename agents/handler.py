"""Handlers: the methods of an agent that can be called, and what their annotations say of messages and replies."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints, overload

from ..bus.client import MAX_TIMEOUT_S
from .call import Call
from .message import Codec, codec

Priority = Literal["interactive", "normal", "background"]
PRIORITIES: dict[str, int] = {"interactive": 1, "normal": 0, "background": -1}

Method = TypeVar("Method", bound=Callable[..., Any])

_ASKED = "__aikoryu_handler__"
_HEARS = "__aikoryu_topic__"
_MOVES = "__aikoryu_context__"


class _Asked(NamedTuple):
    deadline_s: float | None
    priority: Priority
    idempotent: bool


class _Hears(NamedTuple):
    topic: str
    share: str | None


class _Moves(NamedTuple):
    threshold: float
    min_interval_s: float


@dataclass(frozen=True, slots=True)
class Handler:
    """One handler of a class of agents.

    Attributes:
        name: the method's.
        function: the method itself, unbound.
        takes: which arguments it has after `self`, in order: "message", "call".
        message, reply: their types; of a stream, `reply` is that of an item.
        streams: it yields its reply item by item.
        deadline_s: longest a call waits for its answer, or for the next item; None if the caller alone says.
        priority: of calls that name none: 1 interactive, 0 normal, -1 background.
        idempotent: it may run twice for one call.
    """

    name: str
    function: Callable[..., Any]
    takes: tuple[str, ...]
    message: Codec
    reply: Codec
    streams: bool
    deadline_s: float | None = None
    priority: int = 0
    idempotent: bool = False

    def __post_init__(self) -> None:
        if self.deadline_s is not None and not 0 < self.deadline_s <= MAX_TIMEOUT_S:
            raise ValueError(
                f"{self.function.__qualname__}: deadline_s is {self.deadline_s}: use more than 0 and at most "
                f"{MAX_TIMEOUT_S:g} s"
            )

    def arguments(self, message: Any, call: Any) -> list[Any]:
        """What the function is called with after the agent."""
        return [call if name == "call" else message for name in self.takes]

    @property
    def metadata(self) -> dict[str, str]:
        """What discovery tells of it: enough to call it."""
        return {
            "kind": "stream" if self.streams else "unary",
            "request": self.message.schema,
            "reply": self.reply.schema,
            "idempotent": str(self.idempotent).lower(),
            "help": (inspect.getdoc(self.function) or "").partition("\n")[0],
        }


@dataclass(frozen=True, slots=True)
class TopicHandler:
    """A method that hears a topic.

    Attributes:
        function: the method itself, unbound.
        takes: as a handler's.
        message: type of one message.
        batch: it takes all that wait, as a list.
        topic: what it hears, `market.>`.
        share: the queue group; each message goes to one of its members. None: to all who hear the topic.
    """

    function: Callable[..., Any]
    takes: tuple[str, ...]
    message: Codec
    batch: bool
    topic: str
    share: str | None

    def arguments(self, message: Any, call: Any) -> list[Any]:
        """What the function is called with after the agent."""
        return [call if name == "call" else message for name in self.takes]


@dataclass(frozen=True, slots=True)
class ContextHandler:
    """A method that hears when the agent's blended context has moved.

    Attributes:
        function: the method itself, unbound.
        takes: as a handler's; the message is the change.
        threshold, min_interval_s: as of `Context.watch`.
    """

    function: Callable[..., Any]
    takes: tuple[str, ...]
    threshold: float
    min_interval_s: float

    def arguments(self, change: Any, call: Any) -> list[Any]:
        """What the function is called with after the agent."""
        return [call if name == "call" else change for name in self.takes]


@overload
def handler(method: Method) -> Method: ...
@overload
def handler(
    *, deadline_s: float | None = None, priority: Priority = "normal", idempotent: bool = False
) -> Callable[[Method], Method]: ...


def handler(
    method: Method | None = None,
    *,
    deadline_s: float | None = None,
    priority: Priority = "normal",
    idempotent: bool = False,
) -> Method | Callable[[Method], Method]:
    """Make a method one that can be called over the bus.

    It is `async def name(self, message: M, call: Call) -> R`, either argument may be missing; what it returns is the
    reply. If it yields, the reply is a stream of items.

    Args:
        method: the method, where the decorator is written without arguments.
        deadline_s: longest a call waits for its answer, of a stream for the next item, whatever its caller says.
        priority: of calls that name none.
        idempotent: it may run twice for one call: callers who know the class have it sent again when it, or its
            answer, may be lost, instead of failing.
    """
    if priority not in PRIORITIES:
        raise ValueError(f"priority {priority!r}: use {', '.join(PRIORITIES)}")

    def mark(method: Method) -> Method:
        setattr(method, _ASKED, _Asked(deadline_s, priority, idempotent))
        return method

    return mark if method is None else mark(method)


def on(topic: str, *, share: str | None = None) -> Callable[[Method], Method]:
    """Have a method hear a topic: `async def name(self, message: M)`; `list[M]` takes all that wait at once.

    Messages come one after the other, in the order in which they were published by each who publishes. Of those that
    find the mailbox full the oldest are dropped, and counted in the log.

    Args:
        topic: `market.nasdaq`, or a pattern: `market.*`, `market.>`.
        share: the name of a group; each message goes to one of its members instead of all.
    """

    def mark(method: Method) -> Method:
        setattr(method, _HEARS, _Hears(topic, share))
        return method

    return mark


def on_context(*, threshold: float = 0.1, min_interval_s: float = 0.0) -> Callable[[Method], Method]:
    """Have a method hear when the agent's blended context has moved: `async def name(self, change: ContextChange)`.

    It may take the call, too. Changes come one after the other; those that come while it runs are told as one. A change
    that was told when the graph's owner died may be told once more. Every process that has the agent hears them.

    Args:
        threshold: at least 0; how far the context must be from what was told before.
        min_interval_s: the least time between two changes, s.
    """
    if not 0 <= threshold < float("inf") or not 0 <= min_interval_s < float("inf"):
        raise ValueError(f"threshold is {threshold}, min_interval_s {min_interval_s}: use at least 0")

    def mark(method: Method) -> Method:
        setattr(method, _MOVES, _Moves(threshold, min_interval_s))
        return method

    return mark


def handlers_of(cls: type) -> tuple[dict[str, Handler], list[TopicHandler]]:
    """The handlers of a class, by name, and the topics it hears.

    Raises:
        TypeError: a method is none that can be called so; the message says what to change.
    """
    handlers: dict[str, Handler] = {}
    topics: list[TopicHandler] = []
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        asked: _Asked | None = getattr(method, _ASKED, None)
        hears: _Hears | None = getattr(method, _HEARS, None)
        if asked is not None:
            if not name.isascii():
                raise TypeError(f"{method.__qualname__}: a handler's name is part of a subject: use ASCII letters")
            handlers[name] = make_handler(name, method, asked.deadline_s, asked.priority, asked.idempotent)
        if hears is not None:
            takes, message, _ = _signature(method)
            _check_async(method)
            batch = get_origin(message) is list
            topics.append(TopicHandler(method, takes, codec(get_args(message)[0] if batch else message), batch, *hears))
    return handlers, topics


def context_handlers_of(cls: type) -> tuple[ContextHandler, ...]:
    """The methods that hear of the agent's context.

    Raises:
        TypeError: as for `handlers_of`.
    """
    found: list[ContextHandler] = []
    for _, method in inspect.getmembers(cls, inspect.isfunction):
        moves: _Moves | None = getattr(method, _MOVES, None)
        if moves is not None:
            takes, _, _ = _signature(method)
            _check_async(method)
            found.append(ContextHandler(method, takes, *moves))
    return tuple(found)


def make_handler(
    name: str, method: Callable[..., Any], deadline_s: float | None, priority: Priority, idempotent: bool
) -> Handler:
    """The handler that a method is.

    Raises:
        TypeError: as for `handlers_of`.
    """
    takes, message, reply = _signature(method)
    streams = inspect.isasyncgenfunction(method)
    if streams:
        reply = (get_args(reply) or (Any,))[0]
    else:
        _check_async(method)
    return Handler(
        name, method, takes, codec(message), codec(reply), streams, deadline_s, PRIORITIES[priority], idempotent
    )


def _signature(method: Callable[..., Any]) -> tuple[tuple[str, ...], Any, Any]:
    """Which arguments a method takes after `self`, the type of its message, and of what it returns."""
    try:
        hints = get_type_hints(method, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"{method.__qualname__}: the type {error.name} is not known where the module is read: define it there, "
            "outside of functions"
        ) from None
    takes: list[str] = []
    message: Any = Any
    for name in list(inspect.signature(method).parameters)[1:]:
        if name == "call" or hints.get(name) is Call:
            takes.append("call")
        else:
            takes.append("message")
            message = _known(hints.get(name, Any))
    if len(takes) != len(set(takes)):
        raise TypeError(
            f"{method.__qualname__}: a handler takes one message, and perhaps the call: (self, message, call)"
        )
    return tuple(takes), message, _known(hints.get("return", Any))


def _known(hint: Any) -> Any:
    """`object` says as little as no annotation."""
    return Any if hint is object else hint


def _check_async(method: Callable[..., Any]) -> None:
    if not inspect.iscoroutinefunction(method):
        raise TypeError(f"{method.__qualname__}: write `async def`; work that blocks belongs in `asyncio.to_thread`")
