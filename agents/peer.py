"""Calling agents: by name or by class, for one reply, for a stream of items, or for the replies of all of a name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ..bus.client import Client
from ..bus.subjects import partition
from .agent import NAME, Kind, kind_of
from .asking import Asking
from .handler import Handler
from .keyed_asking import AskingKey, Numbers
from .lookout import Lookout
from .state_store import check_key
from .topics import Publisher


class Agents:
    """The agents of the bus.

    Args:
        client: asks them.
        publisher: tells topics.
        lookout: hears which agents there are.
        partitions: as the settings' `bus.partitions`, the same for everybody on the bus.

    Attributes:
        publish: tell all who hear a topic; see `Publisher.publish`.
        entries: which agents there are, in which processes, and their load; see `Lookout.find`.
        watch: who is there, and then who comes and who goes; see `Lookout.watch`.
    """

    def __init__(self, client: Client, publisher: Publisher, lookout: Lookout, partitions: int) -> None:
        self._client = client
        self._partitions = partitions
        self._numbers = Numbers(client.number)
        self.publish = publisher.publish
        self.entries = lookout.find
        self.watch = lookout.watch
        self._lookout = lookout

    def get(
        self,
        agent: str | type | Callable[..., Any],
        kind: type | Callable[..., Any] | None = None,
        *,
        key: str | None = None,
    ) -> Peer:
        """An agent of the bus; nothing is sent.

        Args:
            agent: its name, or the class, or the tool's function, that has it from this program's app.
            kind: the class of an agent that is named, if it is known here: then replies are what its handlers
                declare, else maps whose fields are attributes.
            key: of an agent with state, which of them.

        Raises:
            ValueError: this is no name, or a class without one; or one with state, and no key.
        """
        if not isinstance(agent, str):
            kind, name = agent, getattr(agent, NAME, "")
            if not name:
                raise ValueError(f"{agent!r} has no name: put @app.agent above it, or give get() its name first")
            agent = name
        self._client.subjects.agent(agent)  # for its check
        declared = None if kind is None else kind_of(kind)
        if declared is not None and (declared.state is None) != (key is None):
            why = "keeps no state: leave the key out" if key is not None else "has state: give get() a key"
            raise ValueError(f"{agent} {why}")
        if key is None:
            return Peer(self._client, agent, declared)
        check_key(key)
        return KeyedPeer(self._client, agent, declared, key, partition(key, self._partitions), self._numbers)

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
        return Asking(self._client, f"agent.{self._name}.{handler}", self._declared(handler))

    def __repr__(self) -> str:
        return f"<agent {self._name}>"

    def _declared(self, handler: str) -> Handler | None:
        declared = None
        if self._handlers is not None:
            declared = self._handlers.get(handler)
            if declared is None:
                there = ", ".join(self._handlers) or "none"
                raise AttributeError(f"{self._name} has no handler {handler!r}: it has {there}")
        return declared


class KeyedPeer(Peer):
    """An agent with state, of one key."""

    __slots__ = ("_key", "_numbers", "_partition")

    def __init__(
        self, client: Client, name: str, kind: Kind | None, key: str, partition: int, numbers: Numbers
    ) -> None:
        super().__init__(client, name, kind)
        self._key = key
        self._partition = partition
        self._numbers = numbers

    def __getitem__(self, handler: str) -> Asking:
        name = f"agent.{self._name}.{handler}.{self._partition}"
        return AskingKey(self._client, name, self._declared(handler), self._name, self._key, self._numbers)

    def __repr__(self) -> str:
        return f"<agent {self._name} {self._key!r}>"
