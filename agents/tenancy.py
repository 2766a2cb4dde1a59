"""One partition of an agent while this process owns it: its states, and the calls that change them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ..bus.bucket import Overtaken
from ..bus.errors import Disconnected, Moved
from ..bus.jetstream import NoAnswer, Unavailable
from ..bus.leases import LeaseLost
from .agent import Resident
from .cells import Cell, Cells
from .message import encode
from .saved import CallNumber, Saved, decode_saved
from .state_store import Lease, StateStore


class Leaving(Protocol):
    """A call that a tenancy waits for, or gives up."""

    answered: bool

    def give_up(self) -> None:
        """Have its caller ask the next owner."""


class Tenancy:
    """What a process knows of a partition that it owns; none of it outlives the lease.

    Args:
        resident: the agent.
        partition: of its keys.
        lease: by which this process owns it.
        store: where states are kept.
        cells: what this process remembers of keys.
        on_lost: called with the reason when it shows that another owns the partition.
    """

    def __init__(
        self,
        resident: Resident,
        partition: int,
        lease: Lease,
        store: StateStore,
        cells: Cells,
        on_lost: Callable[[str], None],
    ) -> None:
        self._resident = resident
        self._partition = partition
        self._lease = lease
        self._store = store
        self._on_lost = on_lost
        self._all_cells = cells
        self._cells: dict[str, Cell] = {}
        self._calls: set[Leaving] = set()
        self._idle = asyncio.Event()

    def accepted(self, calls: Iterable[Leaving]) -> None:
        """Calls that the next owner has to wait for."""
        self._calls.update(call for call in calls if not call.answered)

    def ended(self, call: Leaving) -> None:
        """One of them has its answer, or wants none any more."""
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()

    async def settle(self, timeout_s: float) -> None:
        """Return when every call has its answer; those left then go to the next owner."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._calls:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            self.give_up()

    def give_up(self) -> None:
        """Have the callers of all that wait or run ask the next owner."""
        for call in list(self._calls):
            call.give_up()

    def end(self) -> None:
        """Forget what is known: another owns the partition from now on."""
        self._all_cells.forget(self._cells)

    async def apply(self, key: str, number: CallNumber | None, handle: Callable[[Any], Awaitable[bytes]]) -> bytes:
        """Answer a call: with what it was answered before, or by its handler, when its state is written.

        Args:
            key: of the agent; its calls come one after the other.
            number: tells the call from others; None: every time that it comes is another.
            handle: runs the handler on the agent, returns the reply.

        Raises:
            Moved: the partition has another owner, or the store did not answer. It is not known whether the call was
                applied, but its number is, by the next who is asked.
            Forgotten: likewise, for good.
            Whatever the handler raises; its call was not applied.
        """
        async with self._all_cells.turn(self._cells, key) as cell:
            try:
                saved = await self._load(key, cell)
                kept = None if number is None else saved.reply_to(number)
                if kept is not None:
                    return kept
                agent = self._agent(key, saved)
                reply = await handle(agent)
                state = encode(agent.state)
                assert isinstance(state, bytes)
                with self._asking(key):
                    self._lease.check()
                if state != saved.state:
                    self._state.decode(state)  # what cannot be read again is not written
                    await self._save(cell, saved.after(state, self._lease.token, number, reply))
                return reply
            except BaseException:
                cell.clear()  # it is not known what lies in the store
                raise

    @property
    def _state(self) -> Any:
        return self._resident.kind.state

    def _agent(self, key: str, saved: Saved) -> Any:
        agent = self._resident.agent()
        agent.key = key
        agent.state = self._state.decode(saved.state) if saved.state else self._state.type()
        return agent

    async def _load(self, key: str, cell: Cell) -> Saved:
        with self._asking(key):
            self._lease.check()
            if cell.saved is not None:
                return cell.saved
            found = await self._store.read(self._resident.name, self._partition, key)
            saved = decode_saved(found.data) if found.data else Saved(key)
            if saved.token > self._lease.token:
                raise LeaseLost(f"it was written with token {saved.token}, after {self._lease.token}")
            cell.fill(saved, found.sequence, len(found.data))
            return saved

    async def _save(self, cell: Cell, saved: Saved) -> None:
        data = saved.encode()
        with self._asking(saved.key):
            sequence = await self._store.write(self._resident.name, self._partition, saved.key, data, cell.sequence)
        cell.fill(saved, sequence, len(data))

    @contextmanager
    def _asking(self, key: str) -> Iterator[None]:
        """What the store and the lease say, as callers hear it."""
        try:
            yield
        except (LeaseLost, Overtaken) as error:
            if isinstance(error, LeaseLost):
                # As long as this process listens, its word may reach callers before that of the next owner.
                self._on_lost(str(error))
            raise Moved(f"{self._resident.name} {key!r} has another owner: ask again") from error
        except (NoAnswer, Unavailable, Disconnected) as error:
            raise Moved(f"{self._resident.name} {key!r}: its state is out of reach ({error}): ask again") from error
