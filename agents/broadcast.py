"""Asking all processes that have an agent: one frame out, an answer from each."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from ..bus import tracing
from ..bus.client import Client
from ..bus.columns import pack_strings, unpack
from ..bus.errors import BusError, Expired
from ..bus.frames import Reply, Request, encode
from ..bus.pending import Pending, exception_of
from ..bus.resends import BUSY_RETRIES
from .message import no_reply

_log = structlog.get_logger(__name__)


class Broadcast(Pending):
    """A frame of one row that many answer.

    Attributes:
        answers: by process, the reply's bytes or text, or its error.
        unread: replies that could not be read, and are nobody's answer.
    """

    __slots__ = ("_done", "_most", "answers", "unread")

    def __init__(self, id_: int, subject: str, payload: bytes, deadline: float, most: int | None) -> None:
        super().__init__(id_, subject, payload, 1, deadline, idempotent=False)
        # That one process is busy is its answer: sent again, the frame would run once more in all others.
        self.busy = BUSY_RETRIES
        self.answers: dict[str, Any] = {}
        self.unread = 0
        self._most = most
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def ask(
        cls, client: Client, name: str, row: dict[str, Any], timeout_s: float, most: int | None
    ) -> dict[str, Any]:
        """Ask, and gather what comes within the time, or the first `most` answers.

        Raises:
            NoWorker: nobody is there.
            BusError: the connection was lost or closed before anybody had answered.
        """
        agent, _, handler = name.rpartition(".")
        cols = {key: pack_strings([value]) for key, value in row.items()}
        id_ = client.next_id()
        request = Request(v=1, client=client.number, id=id_, n=1, cols=cols, ttl_ms=max(1, round(1000 * timeout_s)))
        deadline = asyncio.get_running_loop().time() + timeout_s
        with tracing.calling(f"{agent}.all.{handler}") as calling:
            request.trace = calling.context
            asked = cls(id_, client.subjects.asked(f"{agent}.all.{handler}"), encode(request), deadline, most)
            client.send(asked)
            try:
                await asked._done
            finally:
                client.withdraw(id_, [])  # whoever has not answered need not
        return asked.answers

    def deliver(self, reply: Reply) -> None:
        """One process has answered."""
        process = reply.by.engine if reply.by is not None else f"unnamed-{len(self.answers)}"
        self.answers[process] = exception_of(reply.err[0]) if reply.err else _reply_in(reply)
        reply.last = False  # the others answer, too
        if self._most is not None and len(self.answers) >= self._most:
            self.open = 0
            self._end(None)

    def spoilt(self, error: BusError) -> bool:
        """Who sent it is not known; the others answer, too."""
        self.unread += 1
        if self.unread & (self.unread - 1) == 0:  # the 1st, 2nd, 4th, 8th
            _log.warning("answer of a process not read", subject=self.subject, count=self.unread, error=str(error))
        return False

    def fail_rows(self, first: int, count: int, error: BusError) -> None:
        self._end(None if isinstance(error, Expired) or self.answers else error)

    def _end(self, error: BusError | None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)


def _reply_in(reply: Reply) -> Any:
    """The reply's bytes or text; an error where there is none, which is nothing to the others' answers."""
    column = reply.cols.get("reply")
    try:
        values = None if column is None else unpack(column, 1)
    except BusError as error:
        return error
    return values[0] if isinstance(values, list) else no_reply()
