"""A run: faults one after the other, each under load, and the account of its calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from ...agents import connect
from ...bus.errors import BusError
from ..demo_process import Child, child
from ..failure import Failed
from .faults import Fault
from .ledger import BIN_S, Account
from .load import OPERATION, LoadTask, Told
from .stage import Stage
from .timeline import Counters, Period, Sample, Timeline

CALIBRATE_S = 2.0
TIMEOUT_S = 30.0
SAMPLE_S = 0.1
RECOVER_S = 60.0
SPACING = 10**12
LOADS = 100
"""Processes of the load that have so many numbers each for their calls; float64 holds them all, and their products."""


@dataclass(frozen=True)
class Outcome:
    """What came of one fault.

    Attributes:
        fault: which.
        happened: how often it did.
        account: of the calls made meanwhile.
        on_spare: rows that ran on the spare.
        recovered_s: from the end of the fault until the device had the operation again; None: it did not in time.
    """

    fault: Fault
    happened: int
    account: Account
    on_spare: int
    recovered_s: float | None


@dataclass(frozen=True)
class _Load:
    """Processes that call, and what each has told of its calls."""

    parts: list[Account]

    @property
    def account(self) -> Account:
        """Of all of them together."""
        whole = Account()
        for part in self.parts:
            whole.add(part)
        return whole


class Run:
    """One run over a stage.

    Args:
        stage: what faults act on.
        processes: of the load.
        share: of the calls that are answered without a pause, how many are made.

    Attributes:
        timeline: of all that happened.
        capacity: calls answered a second without a pause, as `calibrate` found.
    """

    def __init__(self, stage: Stage, processes: int, share: float) -> None:
        self.timeline = Timeline()
        self.capacity = 0.0
        self._stage = stage
        self._processes = processes
        self._share = share
        self._began_s = time.monotonic()
        self._counters = Counters(stage.subjects.operation(OPERATION))
        self._loads = 0
        self._changed = asyncio.Event()

    async def calibrate(self) -> None:
        """Find how many calls a second are answered without a pause; the first moments do not count.

        Raises:
            Failed: a call was answered wrongly or not at all, without any fault.
        """
        async with self._load(0.0, proxied=False) as load:
            await asyncio.sleep(CALIBRATE_S)
        if not load.account.clean:
            account = load.account
            raise Failed(f"without any fault {account.lost} calls were lost and {account.wrong} answered wrongly")
        bins = [count for count in load.account.answered if count]
        steady = bins[len(bins) // 4 : -1] or bins
        self.capacity = sum(steady) / len(steady) / BIN_S

    async def under(self, fault: Fault, calls: int) -> Outcome:
        """Make calls, at least so many and for as long as the fault takes, and let it happen meanwhile."""
        rate = self._share * self.capacity
        before = len(self.timeline.samples)
        async with self._load(rate, proxied=fault.proxied) as load:
            began = self._now()
            happened = await fault.cause(self._stage, max(fault.seconds, calls / rate))
            ended = self._now()
            self.timeline.periods.append(Period(fault.name, began, ended))
            while load.account.calls < calls:
                await self._change()
        recovered = await self._recovered(ended)
        spare = sum(sample.spare_rows for sample in self.timeline.samples[before:])
        return Outcome(fault, happened, load.account, spare, recovered)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Ask the workers for their figures all the while."""
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            yield
            watching.cancel()

    def _now(self) -> float:
        return time.monotonic() - self._began_s

    @asynccontextmanager
    async def _load(self, rate: float, *, proxied: bool) -> AsyncIterator[_Load]:
        """Let the processes of the load call, from their first answers to the end of the block."""
        settings = self._stage.proxied if proxied else self._stage.settings
        async with AsyncExitStack() as stack:
            processes = []
            for _ in range(self._processes):
                offset = SPACING * self._loads
                task = LoadTask(settings, rate / self._processes, TIMEOUT_S, self._began_s, offset)
                self._loads = (self._loads + 1) % LOADS
                processes.append(await stack.enter_async_context(child("load", "chaos.load", task, Told)))
            load = _Load([Account() for _ in processes])
            async with asyncio.TaskGroup() as hearing:
                for number, process in enumerate(processes):
                    hearing.create_task(self._hear(load, number, process))
                while not all(part.right for part in load.parts):
                    await self._change()
                yield load
                for process in processes:
                    process.finish()

    async def _hear(self, load: _Load, number: int, process: Child[Told]) -> None:
        """Follow a process of the load to its end."""
        while told := await process.hear():
            self._note(load.parts[number], told.account)
            load.parts[number] = told.account
            self._changed.set()

    def _note(self, before: Account, now: Account) -> None:
        """Add what was answered since then to the timeline."""
        bins = self.timeline.answered
        bins += [0] * (len(now.answered) - len(bins))
        for number, count in enumerate(now.answered):
            bins[number] += count - (before.answered[number] if number < len(before.answered) else 0)

    async def _watch(self) -> None:
        while True:
            with suppress(BusError):  # the server may be the one that is down
                workers = await self._stage.workers(SAMPLE_S)
                self.timeline.samples.append(self._counters.sample(self._now(), workers))
                self._changed.set()
            await asyncio.sleep(SAMPLE_S)

    async def _recovered(self, since_s: float) -> float | None:
        """Return when the device is trusted again with what comes: how long that took."""
        async with connect(settings=self._stage.settings) as bus:
            while self._now() < since_s + RECOVER_S:
                with suppress(BusError):
                    await bus.call(OPERATION, {"a": 1.0, "b": 1.0})
                sample = await self._next_sample()
                if sample.breaker == "closed" and sample.device_rows and not sample.spare_rows:
                    return sample.at_s - since_s
        return None

    async def _next_sample(self) -> Sample:
        seen = len(self.timeline.samples)
        while len(self.timeline.samples) == seen:
            await self._change()
        return self.timeline.samples[-1]

    async def _change(self) -> None:
        """Return when the timeline has more."""
        self._changed.clear()
        await self._changed.wait()
