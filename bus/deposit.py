"""Putting a message into a stream that keeps one of a subject: again and again, until the server says it has it."""

from __future__ import annotations

import asyncio
from functools import partial

from .errors import BusError, Disconnected
from .jetstream import NoAnswer, Unavailable
from .outgoing import Headers
from .pipeline import Occupied, Pipeline, settle

UNAVAILABLE_S = 3.0  # a server that has just come back may not know its streams yet
RESEND_S = 0.1


async def deposit(pipeline: Pipeline, subject: str, payload: bytes, headers: Headers, timeout_s: float) -> bool:
    """Publish a message until the server says that the stream has it, or another of its subject.

    Sending it again is safe because of that: the second is refused.

    Args:
        pipeline: to JetStream.
        subject: of a stream that refuses a second message of a subject.
        payload: the message.
        headers: of the message.
        timeout_s: how long it is tried, s.

    Returns:
        Whether it was put there now; false if one was there before.

    Raises:
        Full, Refused, TooLarge: it is not there.
        Unavailable: no stream took it for `UNAVAILABLE_S`.
        NoAnswer: the server did not say; it may be there.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        stored: asyncio.Future[BusError | None] = loop.create_future()
        pipeline.publish(subject, payload, partial(settle, stored), headers)
        error = await stored
        if error is None:
            return True
        past_s = loop.time() - began
        if isinstance(error, Occupied):
            return False
        if isinstance(error, Unavailable) and past_s >= UNAVAILABLE_S:
            raise error
        if not isinstance(error, (Unavailable, NoAnswer, Disconnected)):
            raise error
        if past_s >= timeout_s:
            raise NoAnswer(f"the server did not say within {timeout_s:g} s that it has a message: find out") from error
        await asyncio.sleep(RESEND_S)
