"""One call of a handler, from its arrival until nobody waits for it any more."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import structlog

from ..bus import tracing
from ..bus.deadline import until
from ..bus.errors import BusError, Busy, Cancelled, Expired, HandlerFailed
from ..bus.service import Held
from .agent import Resident
from .call import Call
from .chain import decode_chain, new_chain, serving
from .handler import Handler
from .message import Encoded

_UNTRACED = nullcontext()

_log = structlog.get_logger(__name__)


class Run:
    """A call that waits in an agent's mailbox, or runs; what becomes of its answer is its subclasses' to say.

    Attributes:
        resident, handler: what was called.
        held: the frame it came in.
        deadline: monotonic time until which its caller waits, s; infinite if it does not say.
        task: runs the handler; None while the call waits.
        began: the task has begun; one that is cancelled before would never run at all, nor answer.
        trace: the trace context that came with it; empty if none did.
        left: why it is ended: `Cancelled` by its caller, `Expired`, or `Closed` by a stop; None while it goes on.
    """

    __slots__ = ("_chain", "_message", "began", "deadline", "handler", "held", "left", "resident", "task", "trace")

    def __init__(self, resident: Resident, handler: Handler, held: Held, message: Encoded, chain: bytes) -> None:
        self.resident = resident
        self.handler = handler
        self.held = held
        self._message = message
        self._chain = chain
        self.trace = held.request.trace
        limit_s = handler.deadline_s
        self.deadline = held.deadline if limit_s is None else min(held.deadline, held.arrived + limit_s)
        self.began = False
        self.task: asyncio.Task[None] | None = None
        self.left: type[BusError] | None = None

    @property
    def hop(self) -> str:
        """What the handler is called in a chain."""
        return f"{self.resident.name}.{self.handler.name}"

    @property
    def named(self) -> str:
        """What the agent is called in its graph of contexts."""
        return self.resident.name

    @property
    def text(self) -> bool:
        """Whether the message came as JSON text, so that the answer must be."""
        return isinstance(self._message, str)

    def traced(self) -> AbstractContextManager[None]:
        """Within it what the handler does is part of the call's trace, if there is one."""
        if not self.trace:
            return _UNTRACED
        return tracing.handling(f"{self.resident.name}.{self.handler.name}", self.trace, self.held.arrived)

    async def work(self, bus: Any) -> None:
        """Run the handler and give its answer; cancelled when nobody waits any more."""
        raise NotImplementedError

    def refuse(self, error: BusError) -> None:
        """Answer with an error, unless there is an answer; nothing is sent to a caller who withdrew."""
        raise NotImplementedError

    def enter(self, bus: Any) -> list[Any]:
        """Let what this task asks inherit the chain and the deadline.

        Returns:
            What the handler's function is called with.

        Raises:
            CallCycle: the handler would wait for itself.
            BadMessage: the message is not what the handler declares, or the chain is none.
        """
        chain = decode_chain(self._chain) if self._chain else new_chain()
        serving.set(chain.through(self.hop))
        until.set(self.deadline)
        handler = self.handler
        call = Call(bus, self, agent=self.named, graph=self.resident.kind.context)
        return [self.resident.agent, *handler.arguments(handler.message.decode(self._message), call)]

    def failed(self, error: Exception) -> BusError:
        """What the caller is told of a handler's exception; the bus's own pass as they are.

        But `busy` says that nothing has run, so that whoever asked asks again: of a handler that may not run twice that
        would be wrong.
        """
        if isinstance(error, BusError) and (self.handler.idempotent or not isinstance(error, Busy)):
            told: BusError = error
        else:
            if not isinstance(error, BusError):
                _log.error("handler failed", handler=self.hop, exc_info=error)
            told = HandlerFailed(f"{self.hop}: {type(error).__name__}: {error}")
        tracing.failed(told)
        return told

    def ended_early(self) -> BusError:
        """What the caller is told of a run that was ended."""
        if self.left is Expired:
            return Expired("the deadline passed while the handler ran")
        if self.left is Cancelled:
            return Cancelled("the caller withdrew")
        if self.left is not None and self.handler.idempotent:
            return Busy("the agent's process stopped while the handler ran: ask again")
        return HandlerFailed(f"{self.hop}: cancelled; the agent's process stopped, or the handler cancelled itself")
