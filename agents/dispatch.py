"""Tasks to agents: by what each is about, what it can do and how busy it is; by load alone where no worker helps."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import structlog
from numpy.typing import NDArray

from ..bus.errors import BusError, NoWorker
from .assignment import Assignment, Candidates
from .choice import least_loaded
from .dispatch_pool import Pool
from .lookout import Lookout
from .models import Models
from .peer import Agents
from .tensors import Handle, Tensors

DRAWN = 8
CHOOSE_S = 2.0  # longest that a task waits for a worker's word; then its agent is chosen by load
REFRESH_S = 1.0  # age of the loads that tasks are assigned by
TTL_S = 600.0  # that a worker keeps the agents' tensors after their last use

_log = structlog.get_logger(__name__)


class Dispatcher:
    """Chooses agents for tasks.

    Args:
        agents: to be asked.
        lookout: hears which there are.
        models: embeds what tasks and agents are about.
        tensors: keeps what agents are about with a worker.
        assignment: asks who takes a task.
    """

    def __init__(
        self, agents: Agents, lookout: Lookout, models: Models, tensors: Tensors, assignment: Assignment
    ) -> None:
        self._agents = agents
        self._lookout = lookout
        self._models = models
        self._tensors = tensors
        self._assignment = assignment
        self._pool: Pool | None = None
        self._turn = asyncio.Lock()
        self._id = secrets.token_hex(6)

    async def dispatch(
        self,
        task: Any,
        handler: str,
        *,
        about: str = "",
        capabilities: Iterable[str] = (),
        timeout_s: float | None = None,
    ) -> Any:
        """Have a task done by whichever agent suits it best.

        Where a worker embeds texts and assigns (`agents.assign`), tasks of one moment are assigned together, to the
        agents whose `about` is most like the task's and that are not too busy. Where none assigns, the least loaded of
        the 8 most alike is asked; where none embeds, or nothing says what it is about, the least loaded of 8 drawn.

        Args:
            task: the message.
            handler: by which agents take it; all that may be chosen must have it.
            about: the task in words.
            capabilities: all of which the agent must have.
            timeout_s: how long to wait for the reply, as of a call.

        Raises:
            NoWorker: no agent has these capabilities and this handler.
            BusError: as of a call.
        """
        needed = frozenset(capabilities)
        name = await self.choose(handler, about, needed)
        return await self._agents.get(name)[handler](task, timeout_s=timeout_s)

    async def choose(self, handler: str, about: str, needed: frozenset[str]) -> str:
        """The agent for a task. Raises NoWorker, and as `Lookout.find`."""
        if about:
            try:
                async with asyncio.timeout(CHOOSE_S):
                    name = await self._suiting(handler, about, needed)
                if name is not None:
                    return name
            except (BusError, TimeoutError) as error:
                _log.debug("agent chosen by load alone", reason=str(error) or f"no word within {CHOOSE_S:g} s")
        for most in (DRAWN, None):  # all of them only where none of those drawn has the handler
            for entry in await self._lookout.find(None, needed, most):
                if handler in entry.handlers and not entry.keyed:
                    return entry.name
        what = f"with {', '.join(sorted(needed))} " if needed else ""
        raise NoWorker(
            f"no agent {what}has a handler {handler!r}: start one, or correct the names; those with state take none"
        )

    async def _suiting(self, handler: str, about: str, needed: frozenset[str]) -> str | None:
        """The agent that suits a task; None if none says what it is about."""
        query = await self._models.embed(about)
        pool = await self._refreshed()
        need = pool.need(needed, handler)
        if need is None:
            return None
        place = -1
        if pool.candidates is not None:
            try:
                place = (await self._assignment.assign(query, pool.candidates, need=need)).agent
            except BusError as error:
                _log.debug("agent chosen without a worker", error=str(error))
                pool.made = 0.0  # its tensors may be gone: put them again
                pool.candidates = None
        if place < 0:
            place = least_loaded(pool.vectors @ query, pool.load, need=need, capabilities=pool.capabilities)
        return pool.names[place] if place >= 0 else None

    async def _refreshed(self) -> Pool:
        """The agents as they were a moment ago, with a worker if one takes them."""
        async with self._turn:
            now = asyncio.get_running_loop().time()
            old = self._pool
            if old is not None and now - old.made < REFRESH_S:
                return old
            pool = Pool.of(await self._lookout.find(), now)
            same = old is not None and old.same(pool)
            if old is not None and same:
                pool.vectors = old.vectors
            elif pool.names:
                pool.vectors = await self._models.embed(pool.texts)
            try:
                pool.candidates = await self._put(pool, same) if pool.names else None
            except BusError as error:
                _log.debug("no worker keeps what agents are about", error=str(error))
            self._pool = pool
            return pool

    async def _put(self, pool: Pool, same: bool) -> Candidates:
        """Leave the agents with a worker; of the same ones as before, only what changes."""
        group = f"dispatch-{self._id}"

        async def put(array: NDArray[Any], place: Handle | None) -> Handle:
            return await self._tensors.put(array, ttl_s=TTL_S, group=group, replace=place)

        before = self._pool.candidates if self._pool is not None else None  # in their place: none is left behind
        load = await put(pool.load, None if before is None else before.load)
        capacity = await put(pool.capacity, None if before is None else before.capacity)
        if before is not None and same:
            return replace(before, load=load, capacity=capacity)
        vectors = await put(pool.vectors, None if before is None else before.vectors)
        capabilities = await put(pool.capabilities, None if before is None else before.capabilities)
        return Candidates(vectors, capacity, capabilities, load)
