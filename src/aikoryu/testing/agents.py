"""Agents on a bus in memory, with others that stand in for those they ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from ..agents import Agent, App, Bus
from ..agents.agent import CONCURRENCY, KIND, MAILBOX, NAME, kind_of
from ..agents.tool import kind_of_tool
from ..bus.transport import Transport
from ..config import Settings
from .network import Network


@asynccontextmanager
async def app(
    *agents: App | type[Agent] | Callable[..., Any],
    network: Network | None = None,
    settings: Settings | None = None,
    **named: Agent | type[Agent] | Callable[..., Any],
) -> AsyncIterator[Bus]:
    """Serve agents on a bus in memory, inside this event loop.

    Args:
        agents: a program's `App`, for all its agents as they were registered; classes that `@app.agent` has named, and
            functions that `@app.tool` has, with the usual concurrency and no capabilities.
        network: the bus; one of its own by default.
        settings: the defaults unless given; no file and no variable is read.
        named: agents under a name: classes that have none, objects, functions; they stand in for those of `agents`.

    Raises:
        TypeError: something is no agent; the message says what to change.
        ValueError: a class or function has no name, or two have the same.
    """
    rehearsal = _Rehearsal(network or Network(), settings or Settings())
    for name, stand_in in named.items():
        rehearsal.take(stand_in, name)
    for each in agents:
        if isinstance(each, App):
            rehearsal.take_all(each)
        elif (name := getattr(each, NAME, "")) not in named:
            rehearsal.take(each, name)
    async with rehearsal as bus:
        yield bus


class _Rehearsal(App):
    """An app of a test."""

    def __init__(self, network: Network, settings: Settings) -> None:
        super().__init__(settings=settings)
        self._memory = network.memory
        self._network = network

    def take(self, agent: Any, name: str) -> None:
        """Add an agent, or a function that is one."""
        if not name:
            raise ValueError(f"{agent!r} has no name: put @app.agent above it, or give it one, app(name={agent!r})")
        if isinstance(agent, (Agent, type)):
            self.add(agent, name)
            return
        marked = KIND in vars(agent)
        kind = (
            kind_of(agent)
            if marked
            else kind_of_tool(agent, concurrency=CONCURRENCY, deadline_s=None, priority="normal", idempotent=False)
        )
        self._register(name, lambda: None, kind, (), CONCURRENCY, MAILBOX, about="")

    def take_all(self, app: App) -> None:
        """Add what another app has, but for what stands in for it."""
        self._registered = app._registered | self._registered

    async def _connect(self, settings: Settings) -> Transport:
        return self._network.connect()
