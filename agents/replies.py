"""Calls for one reply: the rows of a frame, whose answers leave together when they come in the same loop tick."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import monotonic
from typing import Any

from ..bus.columns import pack_strings
from ..bus.errors import BusError, Cancelled
from ..bus.frames import By, RowError, row_error
from ..bus.frames import Run as Rows
from ..bus.service import Held, Service
from .agent import Resident
from .handler import Handler
from .message import Encoded, encode
from .run import Run


class Asked(Run):
    """A row of a frame.

    Attributes:
        row: its number.
        answered: it has its answer, or nobody wants one.
    """

    __slots__ = ("_replies", "answered", "row")

    def __init__(
        self,
        resident: Resident,
        handler: Handler,
        held: Held,
        message: Encoded,
        chain: bytes,
        row: int,
        replies: Replies,
    ) -> None:
        super().__init__(resident, handler, held, message, chain)
        self.row = row
        self.answered = False
        self._replies = replies

    async def work(self, bus: Any) -> None:
        """Run the handler to its reply."""
        try:
            reply = await self.handler.function(*self.enter(bus))
            answer = encode(reply, text=self.text)
        except Exception as error:
            self.refuse(self.failed(error))
        else:
            self.answered = True
            self._replies.add(self, answer)

    def refuse(self, error: BusError) -> None:
        if not self.answered:
            self.answered = True
            self._replies.add(self, error)


class _Frame:
    """The answers of one frame that have come in this tick."""

    __slots__ = ("errors", "replies")

    def __init__(self) -> None:
        self.replies: list[tuple[int, Any]] = []
        self.errors: list[RowError] = []


class Replies:
    """Answers calls through a service.

    Args:
        service: where the frames came from.
        process: this process's name, told with each answer.
    """

    def __init__(self, service: Service, process: str) -> None:
        self._service = service
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._frames: dict[Held, _Frame] = {}

    def add(self, asked: Asked, answer: Encoded | BusError) -> None:
        """Send an answer at the end of this tick; one that nobody waits for is let go."""
        held = asked.held
        if asked.left is Cancelled:
            self._service.drop(held, 1)
            return
        frame = self._frames.get(held)
        if frame is None:
            frame = _Frame()
            if held.request.n == 1:  # no other can come
                _put(frame, asked.row, answer)
                self._send(held, frame)
                return
            if not self._frames:
                self._loop.call_soon(self._send_all)
            self._frames[held] = frame
        _put(frame, asked.row, answer)

    def _send_all(self) -> None:
        frames, self._frames = self._frames, {}
        for held, frame in frames.items():
            self._send(held, frame)

    def _send(self, held: Held, frame: _Frame) -> None:
        replies = sorted(frame.replies)
        columns = {"reply": pack_strings([reply for _, reply in replies])} if replies else {}
        by = By(self._process, held.request.n, 0, int(1e6 * (monotonic() - held.arrived)))
        self._service.answer(held, runs_of(row for row, _ in replies), columns, frame.errors, by)


def _put(frame: _Frame, row: int, answer: Encoded | BusError) -> None:
    if isinstance(answer, BusError):
        error = row_error(answer, row, 1)
        last = frame.errors[-1] if frame.errors else None
        if last is not None and (last.code, last.msg, last.row + last.n) == (error.code, error.msg, row):
            last.n += 1  # one word for a whole frame is one that has it sent again, if it may be
        else:
            frame.errors.append(error)
    else:
        frame.replies.append((row, answer))


def runs_of(rows: Iterable[int]) -> list[Rows]:
    """Rising row numbers as runs of consecutive ones."""
    runs: list[Rows] = []
    for row in rows:
        if runs and sum(runs[-1]) == row:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((row, 1))
    return runs
