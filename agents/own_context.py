"""An agent's own place in its graph of contexts: what a handler has as `call.context`."""

from __future__ import annotations

from numpy.typing import ArrayLike

from .context import Context
from .context_answers import Linked, Put, Route, Seen, What


class OwnContext:
    """What `Context` offers, of one agent.

    Attributes:
        graph: the whole of it; what others know, and who hears whom.
        agent: what this one is called there.
    """

    __slots__ = ("agent", "graph")

    def __init__(self, graph: Context, agent: str) -> None:
        self.graph = graph
        self.agent = agent

    async def put(
        self, vector: ArrayLike, *, ttl_s: float | None = None, capabilities: int = 0, load: float = 0.0
    ) -> Put:
        """Say what this agent knows; see `Context.put`."""
        return await self.graph.put(self.agent, vector, ttl_s=ttl_s, capabilities=capabilities, load=load)

    async def get(self, *, what: What = "blended") -> Seen:
        """What this agent knows, and what has reached it; see `Context.get`."""
        return await self.graph.get(self.agent, what=what)

    async def follow(self, other: str, weight: float = 1.0, *, ttl_s: float | None = None) -> Linked:
        """Hear another agent, with a weight beside the 1 of one's own context; see `Context.link`."""
        return await self.graph.link(other, self.agent, weight, ttl_s=ttl_s)

    async def unfollow(self, other: str) -> Linked:
        """No longer hear another agent."""
        return await self.graph.unlink(other, self.agent)

    async def route(
        self, query: ArrayLike, *, k: int = 16, needs: int = 0, load_weight: float = 0.0, what: What = "blended"
    ) -> list[Route]:
        """The agents whose contexts are most like a query, this one perhaps among them; see `Context.route`."""
        return await self.graph.route(query, k=k, needs=needs, load_weight=load_weight, what=what)
