"""A handler of an agent, as whoever calls it sees it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from ..bus.client import Client
from ..bus.deadline import inherited_s
from ..bus.errors import BusError
from .broadcast import Broadcast
from .chain import serving
from .consumer import consume
from .handler import PRIORITIES, Handler, Priority
from .message import Codec, codec, encode, no_reply

ALL_S = 1.0  # that a call of all processes waits for their replies

_UNKNOWN = codec(Any)


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
            row_of(message),
            timeout_s=self._timeout_s(timeout_s),
            priority=self._priority(priority),
            idempotent=idempotent,
        )
        return self._read(answer.get("reply"))

    def stream(
        self, message: Any = None, *, timeout_s: float | None = None, priority: Priority | None = None
    ) -> AsyncGenerator[Any, None]:
        """Ask for a stream of items; leaving the iterator, or closing it, ends the generator behind it.

        Args:
            message, priority: as for a call.
            timeout_s: how long to wait for each item.

        Raises:
            BusError: as for a call, when the items before it have been taken.
        """
        limit_s = self._timeout_s(timeout_s)
        limit_s = inherited_s(self._client.timeout_s if limit_s is None else limit_s)
        return consume(self._client, self._name, row_of(message), self._reply, limit_s, self._priority(priority))

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
        answers = await Broadcast.ask(self._client, self._name, row_of(message), inherited_s(timeout_s), most)
        return {process: self._read_one(answer) for process, answer in answers.items()}

    def _read(self, reply: Any) -> Any:
        """The value of a reply. Raises BadMessage, or BadColumn if it is none."""
        if not isinstance(reply, bytes | str):
            raise no_reply()
        return self._reply.decode(reply)

    def _read_one(self, answer: Any) -> Any:
        """The value of one process's answer, or its error: one that cannot be read is nothing to the others."""
        try:
            return answer if isinstance(answer, BusError) else self._read(answer)
        except BusError as error:
            return error

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


def row_of(message: Any) -> dict[str, bytes]:
    """The columns of a call, with the chain it is part of."""
    row: dict[str, Any] = {"message": encode(message)}
    chain = serving.get()
    if chain is not None:
        row["chain"] = chain.encode()
    return row
