"""Taking jobs: one consumer's messages, pulled so that a worker never holds more than it should.

Source: NATS ADR-13. The request is made by hand: nats-py's `fetch` costs three times as much and can stall.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import msgspec

from .jetstream import API
from .pipeline import Pipeline, status_of
from .transport import Message, Subscription, Transport

EXPIRES_S = 30
HEARTBEAT_S = 5
RETRY_S = 0.25
HELD_BYTES = 64 << 20  # of one operation's jobs: take no more


class Puller:
    """Pulls from one consumer whatever there is room for.

    Args:
        transport: the connection.
        pipeline: of the same.
        consumer: names of the stream and the consumer.
        most: jobs held at once.
        took: takes each message; `finished` says that it is done with.
        lost: called when the consumer does not answer.
    """

    def __init__(
        self,
        transport: Transport,
        pipeline: Pipeline,
        consumer: tuple[str, str],
        most: int,
        took: Callable[[Message, Puller], None],
        lost: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._pipeline = pipeline
        self._subject = f"{API}.CONSUMER.MSG.NEXT.{consumer[0]}.{consumer[1]}"
        self._inbox = f"{transport.inbox_prefix}.pull-{secrets.token_hex(6)}"
        self._most = most
        self._took = took
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._asked = 0
        self._held = 0
        self._held_bytes = 0
        self._number = 0
        self._heard_at = 0.0
        self._running = False
        self._watch: asyncio.TimerHandle | None = None
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Listen; nothing is asked for before `resume`."""
        self._subscription = await self._transport.subscribe(f"{self._inbox}.*", self._on_message)

    def resume(self) -> None:
        """Ask for jobs, as if nothing had been asked: at first, and after a lost connection."""
        self._running = True
        self._asked = 0
        self._heard_at = self._loop.time()
        if self._watch is None:
            self._watch = self._loop.call_later(HEARTBEAT_S, self._look)
        self._pull()

    def pause(self) -> None:
        """Ask for nothing more; what was asked for may still come."""
        self._running = False
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def stop(self) -> None:
        """Ask for nothing more, and take what the server has sent already: unheard it would wait for its time."""
        self.pause()
        if self._subscription is not None:
            await self._subscription.drain()

    def finished(self, payload_bytes: int) -> None:
        """A job is done with."""
        self._held -= 1
        self._held_bytes -= payload_bytes
        self._pull()

    def _pull(self) -> None:
        """Ask for what there is room for, once that is half of all."""
        room = self._most - self._held - self._asked
        if not self._running or 2 * room < self._most or self._held_bytes > HELD_BYTES:
            return
        self._asked += room
        self._number += 1
        body = {
            "batch": room,
            "expires": EXPIRES_S * 10**9,
            "idle_heartbeat": HEARTBEAT_S * 10**9,
            "max_bytes": max(HELD_BYTES, self._transport.max_payload),
        }
        self._pipeline.tell(self._subject, msgspec.json.encode(body), f"{self._inbox}.{self._number}")

    def _on_message(self, message: Message) -> None:
        self._heard_at = self._loop.time()
        status = status_of(message)
        if not status:
            self._asked = max(0, self._asked - 1)
            self._held += 1
            self._held_bytes += len(message.data)
            self._took(message, self)
            self._pull()
        elif status == "503":
            self._asked = 0
            self._lost()
        elif status != "100":  # the request has ended; what it did not get is asked for again
            unserved = (message.headers or {}).get("Nats-Pending-Messages")
            self._asked = max(0, self._asked - int(unserved)) if unserved else 0
            if status == "408":
                self._pull()
            else:
                self._loop.call_later(RETRY_S, self._pull)

    def _look(self) -> None:
        """A request that the server has forgotten gets no heartbeat: ask anew."""
        self._watch = self._loop.call_later(HEARTBEAT_S, self._look)
        if self._asked and self._loop.time() - self._heard_at > 2.5 * HEARTBEAT_S:
            self._asked = 0
            self._heard_at = self._loop.time()
            self._lost()
