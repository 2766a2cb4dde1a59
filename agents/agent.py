"""Agents: a class whose methods can be called, and one that lives in a process under a name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .context_graph import check_name
from .handler import ContextHandler, Handler, TopicHandler, context_handlers_of, handlers_of
from .mailbox import Mailbox
from .message import Codec

NAME = "__aikoryu_name__"  # attribute of a class or a tool: what it is called on the bus
KIND = "__aikoryu_kind__"  # attribute of the same: its kind
STATE = "__aikoryu_state__"  # attribute of a class whose agents have state: how that is read

ALL = "all"  # the token of a subject that calls all processes

GRAPH = "agents"  # of contexts, that agents belong to whose classes name no other

CONCURRENCY = 8
MAILBOX = 256


class Agent:
    """Base of agents: `@app.agent("name")` above the class, `@handler`, `@on` or `@on_context` above its methods.

    One object serves all calls of its process, up to the agent's concurrency of them at once, on one event loop: while
    a handler awaits, others run on the same object.

    Attributes:
        context: the graph of contexts that agents of this class belong to; see `Call.context`.
    """

    context: ClassVar[str] = GRAPH


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """What agents of one class have in common, read once.

    Attributes:
        handlers: by name.
        topics: what they hear.
        metadata: what discovery tells of each handler.
        state: how the state of a key is read; None of agents without.
        contexts: what they do when their context has moved.
        context: the graph that they belong to.
    """

    handlers: dict[str, Handler]
    topics: list[TopicHandler]
    metadata: dict[str, dict[str, str]]
    state: Codec | None = None
    contexts: tuple[ContextHandler, ...] = ()
    context: str = GRAPH


def kind_of(thing: Any) -> Kind:
    """The kind of a class of agents, or of a tool's function; read once, and kept with it.

    Raises:
        TypeError: a method is none that can be called so, or there is none.
        ValueError: the class names a graph of contexts that cannot be called so.
    """
    kind: Kind | None = vars(thing).get(KIND)
    if kind is None:
        handlers, topics = handlers_of(thing)
        contexts = context_handlers_of(thing)
        if not handlers and not topics and not contexts:
            raise TypeError(
                f"{thing.__qualname__} is no agent: put @handler or @on, or @on_context, above one of its methods"
            )
        state: Codec | None = getattr(thing, STATE, None)
        if state is not None:
            handlers = _of_keys(thing, handlers, [*topics, *contexts])
        metadata = {name: each.metadata for name, each in handlers.items()}
        kind = Kind(handlers, topics, metadata, state, contexts, _graph_of(thing))
        setattr(thing, KIND, kind)
    return kind


def _graph_of(cls: type) -> str:
    graph = getattr(cls, "context", GRAPH)
    if not isinstance(graph, str):
        raise TypeError(f"{cls.__qualname__}.context names the graph that its agents belong to: call this otherwise")
    check_name(graph)
    return graph


def _of_keys(
    cls: type, handlers: dict[str, Handler], hear: Sequence[TopicHandler | ContextHandler]
) -> dict[str, Handler]:
    """The handlers of a class with state: what is sent again is applied once.

    Raises:
        TypeError: a method is none that such a class may have.
    """
    wrong = [each.function for each in hear] + [each.function for each in handlers.values() if each.streams]
    if wrong:
        raise TypeError(
            f"{wrong[0].__qualname__}: agents with state answer once, and hear no topics nor contexts: put this "
            "into an agent without, which calls them"
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
