"""When a client's frames are sent again: refused by a full queue, unserved, unheard of, or after a lost connection.

A front that dies and a message that the bus loses say nothing. Workers are asked before a silent frame is sent again,
so that one who is merely slow does not get its work twice; one who is gone costs its callers a second and a half.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from .errors import BusError, Busy, EngineDown
from .frames import MAX_ASKED, Question, Reply, decode_holding, encode, sent_again
from .outgoing import Outgoing
from .pending import Pending
from .silence import closed_early, heard, overdue
from .transport import Message, Transport

BUSY_RETRIES = 2
LEAST_S = 0.005  # between two tries, whatever a worker asks for

UNSERVED_S = 15.0  # a worker that is started again takes a few
SOONEST_S = 0.05  # between two looks for it
LATEST_S = 0.25

LOOK_S = 0.25  # between two looks at what is silent
LATE_S = 0.25  # a look so late means that this loop was blocked: what has come meanwhile is read first


class Resends:
    """Sends frames again, each at most once at a time and not after its deadline.

    Args:
        pending: frames sent and not answered whole, by number; the client's own.
        client: its number.
        control: subject of questions to every worker.
        inbox: subject on which workers say what they hold.
        publish: publishes a frame, with this payload.
        outgoing, transport: what it leaves through.

    Attributes:
        watching: there may be frames that can be sent again, and silence is looked for.
    """

    def __init__(
        self,
        pending: dict[int, Pending],
        client: int,
        control: str,
        inbox: str,
        publish: Callable[[Pending, bytes], None],
        outgoing: Outgoing,
        transport: Transport,
    ) -> None:
        self._pending = pending
        self._client = client
        self._control = control
        self._inbox = inbox
        self._publish = publish
        self._outgoing = outgoing
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._served: set[str] = set()  # subjects that somebody has answered for
        self.watching = False
        self._look_at = 0.0
        self._late = False
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Look for silence from now on, until no frame is left that may be sent again."""
        self.watching = True
        self._look_at = self._loop.time() + LOOK_S
        self._timer = self._loop.call_at(self._look_at, self._look)

    def stop(self) -> None:
        """Look no more; when the client is closed."""
        if self._timer is not None:
            self._timer.cancel()

    def served(self, subject: str) -> None:
        """Somebody has answered: a subject that nobody serves later is one whose workers are being started again."""
        self._served.add(subject)

    def refused(self, frame: Pending, reply: Reply) -> bool:
        """Send a frame again, later, that was refused whole because there is no room, or no engine, for now.

        At most twice; until its deadline if a worker of it was lost, because those left have the work of two for a
        while, and if an engine is being started again. True also for a refusal that is out of date.
        """
        if len(reply.err) != 1 or reply.err[0].n not in (0, frame.rows):
            return False
        down = reply.err[0].code == EngineDown.code
        if not down and reply.err[0].code != Busy.code:
            return False
        now = self._loop.time()
        if reply.again < frame.again or frame.heard > now:
            return True
        if frame.busy >= BUSY_RETRIES and not (frame.resent or (down and frame.idempotent)):
            return False
        frame.busy += 1
        retry_s = max(reply.err[0].retry_ms / 1000, LEAST_S) * (1 if down else frame.busy)
        return self._send_later(frame, now, retry_s * (0.5 + random.random()))

    def unserved(self, frame: Pending) -> bool:
        """Send a frame again, later, that found nobody where somebody was before; false if none comes for long."""
        if not frame.idempotent or not (frame.resent or frame.subject in self._served):
            return False
        now = self._loop.time()
        if frame.heard > now:
            return True  # the same word once more
        frame.unserved = frame.unserved or now
        waited_s = now - frame.unserved
        if waited_s >= UNSERVED_S:
            return False
        delay_s = min(max(waited_s, SOONEST_S), LATEST_S)
        return self._send_later(frame, now, delay_s * (0.5 + random.random()))

    def partly_answered(self, frame: Pending, last: bool) -> None:
        """Some rows of a frame have an answer, and its worker has more to say or has not."""
        (closed_early if last else heard)(frame, self._loop.time())

    def on_holding(self, message: Message) -> None:
        """A worker says which frames it holds; or the server, that there is no worker at all."""
        if not message.data:
            return
        try:
            holding = decode_holding(message.data)
        except BusError:
            return
        now = self._loop.time()
        for id_ in holding.ids:
            if id_ in self._pending:
                heard(self._pending[id_], now)

    def send_again(self, frame: Pending) -> None:
        """Send a frame again now that nobody holds any more, or that never arrived."""
        frame.resent = True
        self._send(frame)

    def _look(self) -> None:
        frames = [frame for frame in self._pending.values() if frame.idempotent]
        if not frames:
            self.watching = False
            return
        now = self._loop.time()
        self._late = not self._late and now - self._look_at > LATE_S
        # While messages wait for the connection, in either direction, silence means nothing.
        if not (self._late or self._transport.lost or self._outgoing.backlog_bytes):
            ask, again = overdue(frames, now)
            for first in range(0, len(ask), MAX_ASKED):
                question = Question(self._client, [frame.id for frame in ask[first : first + MAX_ASKED]])
                self._outgoing.send(self._control, encode(question), self._inbox, _in_vain)
            for frame in again:
                self.send_again(frame)
        self.watch()

    def _send_later(self, frame: Pending, now: float, delay_s: float) -> bool:
        """Send a frame again then; false, and it is not, if that is after its deadline."""
        if now + delay_s >= frame.deadline:
            return False
        frame.heard = now + delay_s
        self._loop.call_later(delay_s, self._send_due, frame, frame.again)
        return True

    def _send_due(self, frame: Pending, again: int) -> None:
        if frame.again == again and frame.id in self._pending:
            self._send(frame)

    def _send(self, frame: Pending) -> None:
        frame.again += 1
        frame.heard = frame.asked = 0.0
        self._publish(frame, sent_again(frame.payload, frame.again, frame.deadline - self._loop.time()))


def _in_vain(error: BusError) -> None:
    """A question that a lost connection does not take: when it is back, everything is sent again."""
