"""The call that a handler answers: who waits, how long, and what the handler may ask in its turn."""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from .own_context import OwnContext

if TYPE_CHECKING:
    from .bus import Bus
    from .peer import Peer
    from .run import Run

T = TypeVar("T")


class Call:
    """What a handler knows of its call, and what it asks through.

    What is asked while a handler runs is waited for no longer than its own caller waits, and is withdrawn with it.
    A task that shall outlive the call is made with `context=contextvars.Context()`.

    Attributes:
        bus: every system; see `Bus`.
        topic: of a message that was published, the topic; else empty.
    """

    __slots__ = ("_agent", "_graph", "_run", "bus", "topic")

    def __init__(self, bus: Bus, run: Run | None, topic: str = "", *, agent: str, graph: str) -> None:
        self.bus = bus
        self.topic = topic
        self._run = run
        self._agent = agent
        self._graph = graph

    @property
    def context(self) -> OwnContext:
        """The agent's own context: what it knows, whom it hears; of the graph that its class names, `context = "team"`.

        There it is called as on the bus; an agent with state has a context for each key, `<agent>.<key>`.
        """
        return OwnContext(self.bus.context(self._graph), self._agent)

    @property
    def deadline_s(self) -> float:
        """How long the caller still waits, s; infinite if it does not say, or does not wait at all."""
        return float("inf") if self._run is None else self._run.deadline - monotonic()

    @property
    def cancelled(self) -> bool:
        """Whether the caller waits no longer: for work that cannot be cancelled, such as a thread's."""
        return self._run is not None and self._run.left is not None

    def agent(self, agent: str | type, kind: type | None = None, *, key: str | None = None) -> Peer:
        """An agent, by its class or name; see `Agents.get`."""
        return self.bus.agents.get(agent, kind, key=key)

    async def agents(self, *, capabilities: Collection[str] = (), k: int | None = None) -> list[Peer]:
        """Agents that can do all of this, those with the least to do first, `k` at the most; see `Agents.find`."""
        return await self.bus.agents.find(capabilities=capabilities, k=k)

    async def gather(self, calls: Iterable[Awaitable[T]], *, quorum: int | None = None) -> list[T]:
        """The replies of calls made at once, in the order in which the calls were given.

        Args:
            calls: what is awaited.
            quorum: so many replies are enough: the other calls are withdrawn, and their errors count only when so many
                cannot be had any more. All of them by default.

        Raises:
            BusError: a call failed, and with it the quorum.
        """
        from .coordination.quorum import gather

        return await gather(calls, quorum=quorum)

    def publish(self, topic: str, message: Any) -> None:
        """Tell all who hear a topic; see `Agents.publish`."""
        self.bus.agents.publish(topic, message)
