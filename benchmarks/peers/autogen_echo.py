"""autogen-core in memory: agents of one process and one event loop, no bus between them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestant import Contestant, Served

Rows = NDArray[np.float32]


@dataclass
class Row:
    """A row of floats, as its bytes."""

    data: bytes


class RuntimeClient:
    """Rows of floats, as one agent of the runtime sends them to another."""

    def __init__(self, runtime: Any, agent: Any) -> None:
        self._runtime = runtime
        self._agent = agent

    async def call(self, row: Rows) -> Rows:
        """Echo one row."""
        answer = await self._runtime.send_message(Row(row.tobytes()), self._agent)
        return np.frombuffer(answer.data, np.float32)


@contextlib.asynccontextmanager
async def serve() -> AsyncIterator[Served]:
    """Nothing: the runtime is the client's own."""
    yield Served("", {})


@contextlib.asynccontextmanager
async def connect(_address: str) -> AsyncIterator[RuntimeClient]:
    """A runtime with one echoing agent."""
    import logging

    from autogen_core import AgentId, BaseAgent, MessageContext, SingleThreadedAgentRuntime

    class Echo(BaseAgent):
        """The fastest that there is: no routing by type."""

        async def on_message_impl(self, message: Any, ctx: MessageContext) -> Any:
            return message

    logging.getLogger("autogen_core").setLevel(logging.ERROR)  # a line a message otherwise
    runtime = SingleThreadedAgentRuntime()
    await Echo.register(runtime, "echo", lambda: Echo("echoes"))
    runtime.start()
    yield RuntimeClient(runtime, AgentId("echo", "default"))
    await runtime.stop()


CONTESTANTS = (
    Contestant("autogen-core", serve, connect, frozenset({"row512", "row64", "one"}), needs=("autogen-core",)),
)
