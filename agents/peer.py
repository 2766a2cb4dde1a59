"""Calling agents: by name or by class, for one reply, for a stream of items, or for the replies of all of a name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

from ..bus.client import Client
from ..bus.deadline import inherited_s
from ..bus.errors import BusError
from .agent import NAME, Kind, kind_of
from .broadcast import Broadcast
from .chain import serving
from .consumer import consume
from .handler import PRIORITIES, Handler, Priority
from .lookout import Lookout
from .message import Codec, codec, encode
from .topics import Publisher

ALL_S = 1.0  # that a call of all processes waits for their replies

_UNKNOWN = codec(Any)


class Agents:
    """The agents of the bus.

    Args:
        client: asks them.
        publisher: tells topics.
        lookout: hears which agents there are.

    Attributes:
        publish: tell all who hear a topic; see `Publisher.publish`.
        entries: which agents there are, in which processes, and their load; see `Lookout.find`.
        watch: who is there, and then who comes and who goes; see `Lookout.watch`.
    """

    def __init__(self, client: Client, publisher: Publisher, lookout: Lookout) -> None:
        self._client = client
        self.publish = publisher.publish
        self.entries = lookout.find
        self.watch = lookout.watch
        self._lookout = lookout

    def get(self, agent: str | type | Callable[..., Any], kind: type | Callable[..., Any] | None = None) -> Peer:
        """An agent of the bus; nothing is sent.

        Args:
            agent: its name, or the class, or the tool's function, that has it from this program's app.
            kind: the class of an agent that is named, if it is known here: then replies are what its handlers
                declare, else maps whose fields are attributes.

        Raises:
            ValueError: this is no name, or a class without one.
        """
        if not isinstance(agent, str):
            kind, name = agent, getattr(agent, NAME, "")
            if not name:
                raise ValueError(f"{agent!r} has no name: put @app.agent above it, or give get() its name first")
            agent = name
        self._client.subjects.agent(agent)  # for its check
        declared = None if kind is None else kind_of(kind)
        return Peer(self._client, agent, declared)

    async def find(self, *, capabilities: Collection[str] = (), k: int | None = None) -> list[Peer]:
        """Agents that can do all of this, those with the least to do first.

        Args:
            capabilities: what they must be able to do.
            k: how many at the most.
        """
        return [self.get(name) for name in await self._lookout.names(capabilities, k)]


class Peer:
    """An agent to be asked; its handlers are attributes.

    await peer.ask(message)                    one reply
    async for item in peer.ask.stream(message) a stream of items
    """

    __slots__ = ("_client", "_handlers", "_name")

    def __init__(self, client: Client, name: str, kind: Kind | None) -> None:
        self._client = client
        self._name = name
        self._handlers = None if kind is None else kind.handlers

    def __getattr__(self, handler: str) -> Asking:
        if handler.startswith("_"):
            raise AttributeError(handler)
        return self[handler]

    def __getitem__(self, handler: str) -> Asking:
        """A handler by its name, also where that is no Python name."""
        declared = None
        if self._handlers is not None:
            declared = self._handlers.get(handler)
            if declared is None:
                there = ", ".join(self._handlers) or "none"
                raise AttributeError(f"{self._name} has no handler {handler!r}: it has {there}")
        return Asking(self._client, f"agent.{self._name}.{handler}", declared)

    def __repr__(self) -> str:
        return f"<agent {self._name}>"


class Asking:
    """A handler of an agent, to be called.

    Args:
        client: asks it.
        name: `agent.<agent>.<handler>`.
        declared: what its class says, if that is known.
    """

    __slots__ = ("_client", "_declared", "_name")

    def __init__(self, client: Client, name: str, declared: Handler | None) -> None:
        self._client = client
        self._name = name
        self._declared = declared

    async def __call__(
        self,
        message: Any = None,
        *,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        idempotent: bool | None = None,
    ) -> Any:
        """Ask for one reply.

        Args:
            message: what the handler takes.
            timeout_s: how long to wait; by default what the handler declares, or the bus's usual time. In a handler,
                no longer than its own caller waits.
            priority: in the agent's mailbox; by default what the handler declares.
            idempotent: it may run twice: sent again when it, or its answer, may be lost, instead of failing. By
                default what the handler declares, if its class is known here.

        Raises:
            BusError: what the handler raised or refused; or nobody answered in time.
        """
        declared = self._declared
        if idempotent is None:
            idempotent = declared is not None and declared.idempotent
        answer = await self._client.call(
            self._name,
            _row(message),
            timeout_s=self._timeout_s(timeout_s),
            priority=self._priority(priority),
            idempotent=idempotent,
        )
        return self._reply.decode(answer["reply"])

    def stream(
        self, message: Any = None, *, timeout_s: float | None = None, priority: Priority | None = None
    ) -> AsyncIterator[Any]:
        """Ask for a stream of items; leaving the iterator, or closing it, ends the generator behind it.

        Args:
            message, priority: as for a call.
            timeout_s: how long to wait for each item.

        Raises:
            BusError: as for a call, when the items before it have been taken.
        """
        limit_s = self._timeout_s(timeout_s)
        limit_s = inherited_s(self._client.timeout_s if limit_s is None else limit_s)
        return consume(self._client, self._name, _row(message), self._reply, limit_s, self._priority(priority))

    async def all(self, message: Any = None, *, timeout_s: float = ALL_S, most: int | None = None) -> dict[str, Any]:
        """Ask every process that has the agent.

        Args:
            message: what the handler takes.
            timeout_s: how long to wait for replies: who answers later is not heard.
            most: return when so many have answered.

        Returns:
            By process, its reply, or the `BusError` it answered with instead.

        Raises:
            NoWorker: no process has the agent.
        """
        answers = await Broadcast.ask(self._client, self._name, _row(message), inherited_s(timeout_s), most)
        return {
            process: answer if isinstance(answer, BusError) else self._reply.decode(answer)
            for process, answer in answers.items()
        }

    @property
    def _reply(self) -> Codec:
        return _UNKNOWN if self._declared is None else self._declared.reply

    def _timeout_s(self, given: float | None) -> float | None:
        return self._declared.deadline_s if given is None and self._declared is not None else given

    def _priority(self, given: Priority | None) -> int:
        if given is None:
            return 0 if self._declared is None else self._declared.priority
        if given not in PRIORITIES:
            raise ValueError(f"priority {given!r}: use {', '.join(PRIORITIES)}")
        return PRIORITIES[given]


def _row(message: Any) -> dict[str, bytes]:
    """The columns of a call, with the chain it is part of."""
    row: dict[str, Any] = {"message": encode(message)}
    chain = serving.get()
    if chain is not None:
        row["chain"] = chain.encode()
    return row
