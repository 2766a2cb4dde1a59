"""Hears which processes are there, with which agents; from the first time that somebody wants to know."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Iterable

import structlog

from ..bus.errors import BadFrame, BusError, Closed
from ..bus.outgoing import Outgoing
from ..bus.subjects import Subjects
from ..bus.transport import Message, Subscription, Transport, no_responders
from .allowance import Allowance
from .announcements import Question, decode, encode
from .listing import Entry, Listing
from .roster import Change, NoRoom, Roster

# The first look: nobody knows how many there are, so it ends when no more answers come.
FIRST_ANSWER_S = 0.5
QUIET_S = 0.1
JOINED_WITHIN_S = 2.0

LOOK_S = 0.25  # longest between two looks at the time
QUESTIONS = 64  # a second, for lists that were missed: each is heard by all processes
LATE_S = 0.25  # a look that comes later than this was held up: so was what others said meanwhile

_log = structlog.get_logger(__name__)


class Lookout:
    """Keeps a roster of the agents of a bus; it listens to nobody before the first question.

    Args:
        transport: its connection.
        subjects: the bus's subject tree.
        seed: of the draw among agents that suit; by default another one each time.

    Attributes:
        dropped: announcements that were none, or for which there was no room.
    """

    def __init__(self, transport: Transport, subjects: Subjects, seed: int | None = None) -> None:
        self.dropped = 0
        self._transport = transport
        self._subjects = subjects
        self._inbox = f"{transport.inbox_prefix}.presence-{secrets.token_hex(6)}"
        self._loop = asyncio.get_running_loop()
        self._roster = Roster(secrets.randbits(64) if seed is None else seed)
        self._outgoing = Outgoing(transport)
        self._questions = Allowance(QUESTIONS)
        self._subscriptions: list[Subscription] = []
        self._joining: asyncio.Task[None] | None = None
        self._looked_at = 0.0
        self._look_timer: asyncio.TimerHandle | None = None
        self._answered = asyncio.Event()
        self._nobody = False
        self._edition = 0
        self._next_change = self._loop.create_future()
        self._closed = False

    async def find(
        self, name: str | None = None, capabilities: Iterable[str] = frozenset(), k: int | None = None
    ) -> list[Entry]:
        """The agents of a name, or those that have all capabilities, the least loaded first; see `Roster.find`.

        The first call asks who is there, which takes about 0.1 s; after that nothing is asked.

        Raises:
            ConnectionFailed: this user may not hear who is there.
            Disconnected: the connection was lost before anybody was heard.
            Closed: the bus was closed.
        """
        roster = await self.roster()
        return roster.find(self._loop.time(), name, capabilities, k)

    async def names(self, capabilities: Iterable[str] = frozenset(), k: int | None = None) -> list[str]:
        """The names of agents that have all capabilities, each once, the least loaded first. Raises as `find`."""
        roster = await self.roster()
        return roster.names(self._loop.time(), capabilities, k)

    async def roster(self) -> Roster:
        """Everybody who is there; it is kept up to date. Raises as `find`."""
        if self._closed:
            raise Closed("the bus is closed")
        if self._joining is None or (self._joining.done() and self._failed(self._joining)):
            self._joining = asyncio.create_task(self._join(), name="aikoryu-lookout")
            self._joining.add_done_callback(self._failed)
        if not self._joining.done():
            # Shared by all who ask meanwhile: one that is cancelled takes nothing from the others.
            await asyncio.wait({self._joining})
            if self._closed:
                raise Closed("the bus was closed before it was known who is there")
            self._joining.result()
        self._look()
        return self._roster

    async def watch(self) -> AsyncGenerator[Change, None]:
        """Those who are there, as having joined, and then who comes and who goes; close it (`aclosing`).

        It tells states, not events: an agent that was gone for a moment only may not be told of. Raises as `find`.
        """
        roster = await self.roster()
        seen: dict[str, Listing] = {}
        while not self._closed:
            next_change = self._next_change
            for change in roster.changes(seen, self._loop.time()):
                yield change
            await asyncio.shield(next_change)

    async def close(self) -> None:
        """Listen no more; who watches is let go. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._next_change.set_result(None)
        if self._joining is not None:
            self._joining.cancel()
            await asyncio.wait({self._joining})
        await self._leave()

    @staticmethod
    def _failed(joining: asyncio.Task[None]) -> bool:
        """Also told to the loop, which else would complain where nobody waits any more."""
        return joining.cancelled() or joining.exception() is not None

    async def _join(self) -> None:
        """Listen, ask who is there, and return when no more answers come."""
        try:
            for subject in (f"{self._subjects.presence}.*", self._inbox):
                self._subscriptions.append(await self._transport.subscribe(subject, self._on_message))
            await self._transport.flush()
            self._transport.on_reconnect.append(self._on_reconnect)
            self._looked_at = self._loop.time()
            self._keep_looking()
            self._answered.clear()
            self._ask()
            await self._settle()
        except BaseException:
            await self._leave()
            raise

    async def _settle(self) -> None:
        last = self._loop.time() + JOINED_WITHIN_S
        within_s = FIRST_ANSWER_S
        while not self._nobody and self._loop.time() < last:
            try:
                async with asyncio.timeout(within_s):
                    await self._answered.wait()
            except TimeoutError:
                return
            self._answered.clear()
            within_s = QUIET_S

    async def _leave(self) -> None:
        if self._look_timer is not None:
            self._look_timer.cancel()
        if self._on_reconnect in self._transport.on_reconnect:
            self._transport.on_reconnect.remove(self._on_reconnect)
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.unsubscribe()

    def _ask(self, process: str = "") -> None:
        question = encode(Question(process))
        self._outgoing.send(self._subjects.presence, question, self._inbox, failed=_not_asked)

    def _on_message(self, message: Message) -> None:
        if message.subject == self._inbox:
            self._nobody = no_responders(message)
            self._answered.set()
        if not message.data:
            return
        try:
            announcement = decode(message.data)
            now = self._look()
            missing = self._roster.apply(announcement, now)
        except (BadFrame, NoRoom) as error:
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:  # the 1st, 2nd, 4th, 8th
                _log.warning(
                    "announcement dropped", subject=message.subject[:200], count=self.dropped, error=str(error)
                )
            return
        if missing and self._questions.take(1, now):
            self._ask(announcement.process)  # else its next beat shows it again
        self._tell()

    def _on_reconnect(self) -> None:
        """What was said meanwhile is lost."""
        self._roster.renew(self._look())
        self._ask()

    def _keep_looking(self) -> None:
        now = self._look()
        self._roster.expire(now)
        self._tell()
        at = min(now + LOOK_S, self._roster.next_expiry)
        self._look_timer = self._loop.call_at(at, self._keep_looking)

    def _look(self) -> float:
        """The time, s; none of it counts against others in which this process could not hear them."""
        now = self._loop.time()
        late_s = now - self._looked_at - LOOK_S
        self._looked_at = now
        if self._transport.lost:
            self._roster.renew(now)
        elif late_s > LATE_S:
            self._roster.excuse(late_s)
        return now

    def _tell(self) -> None:
        """Wake who watches, if anybody came or went."""
        if self._edition != self._roster.edition and not self._closed:
            self._edition = self._roster.edition
            self._next_change.set_result(None)
            self._next_change = self._loop.create_future()


def _not_asked(error: BusError) -> None:
    """The next beat of who was to be asked shows again what is missing."""
    _log.debug("question not asked", error=str(error))
