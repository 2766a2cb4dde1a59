"""Agents: a class whose methods can be called, and one that lives in a process under a name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from .handler import Handler, TopicHandler, handlers_of
from .mailbox import Mailbox
from .message import Codec

NAME = "__aikoryu_name__"  # attribute of a class or a tool: what it is called on the bus
KIND = "__aikoryu_kind__"  # attribute of the same: its kind
STATE = "__aikoryu_state__"  # attribute of a class whose agents have state: how that is read

ALL = "all"  # the token of a subject that calls all processes

CONCURRENCY = 8
MAILBOX = 256


class Agent:
    """Base of agents: `@app.agent("name")` above the class, `@handler` or `@on` above its methods.

    One object serves all calls of its process, up to the agent's concurrency of them at once, on one event loop: while
    a handler awaits, others run on the same object.
    """


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """What agents of one class have in common, read once.

    Attributes:
        handlers: by name.
        topics: what they hear.
        metadata: what discovery tells of each handler.
        state: how the state of a key is read; None of agents without.
    """

    handlers: dict[str, Handler]
    topics: list[TopicHandler]
    metadata: dict[str, dict[str, str]]
    state: Codec | None = None


def kind_of(thing: Any) -> Kind:
    """The kind of a class of agents, or of a tool's function; read once, and kept with it.

    Raises:
        TypeError: a method is none that can be called so, or there is none.
    """
    kind: Kind | None = vars(thing).get(KIND)
    if kind is None:
        handlers, topics = handlers_of(thing)
        if not handlers and not topics:
            raise TypeError(f"{thing.__qualname__} is no agent: put @handler or @on above one of its methods")
        state: Codec | None = getattr(thing, STATE, None)
        if state is not None:
            handlers = _of_keys(thing, handlers, topics)
        kind = Kind(handlers, topics, {name: each.metadata for name, each in handlers.items()}, state)
        setattr(thing, KIND, kind)
    return kind


def _of_keys(cls: type, handlers: dict[str, Handler], topics: list[TopicHandler]) -> dict[str, Handler]:
    """The handlers of a class with state: what is sent again is applied once.

    Raises:
        TypeError: a method is none that such a class may have.
    """
    wrong = [each.function for each in topics] + [each.function for each in handlers.values() if each.streams]
    if wrong:
        raise TypeError(
            f"{wrong[0].__qualname__}: agents with state answer once, and hear no topics: put this into an agent "
            "without, which calls them"
        )
    if ALL in handlers:  # `<agent>.all.7` is the handler 7 of all processes
        raise TypeError(f"{handlers[ALL].function.__qualname__}: agents with state have no handler 'all': rename it")
    return {name: replace(each, idempotent=True) for name, each in handlers.items()}


class Resident:
    """One agent of this process.

    Attributes:
        name: what it is called on the bus.
        agent: the object whose methods run; if it has state, what makes one for each call.
        kind: what its class says.
        capabilities: by which others find it.
        about: in words, what it is for.
        mailbox: what it has been asked.
        ownership: if it has state, the keys that are this process's.
    """

    __slots__ = ("about", "agent", "capabilities", "kind", "mailbox", "name", "ownership")

    def __init__(
        self,
        name: str,
        agent: Any,
        kind: Kind,
        capabilities: Iterable[str],
        concurrency: int,
        mailbox: int,
        about: str = "",
    ) -> None:
        self.name = name
        self.agent = agent
        self.kind = kind
        self.capabilities = capabilities if isinstance(capabilities, frozenset) else frozenset(capabilities)
        self.about = about
        self.mailbox: Mailbox[Any] = Mailbox(concurrency, mailbox)
        self.ownership: Any = None
