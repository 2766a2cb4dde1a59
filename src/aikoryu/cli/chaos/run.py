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
from .faults import REST_S, Fault
from .ledger import BIN_S, Account
from .load import OPERATION, LoadTask, Told
from .stage import Stage
from .timeline import Counters, Period, Sample, Timeline

CALIBRATE_S = 2.0
TIMEOUT_S = 30.0
SAMPLE_S = 0.1
RECOVER_S = 60.0
SPACING = 10**12
"""Numbers that a process of the load has for its calls; float64 holds all of them, and their products."""


@dataclass(frozen=True)
class Outcome:
    """What came of one fault.

    Attributes:
        fault: which.
        account: of the calls made meanwhile.
        on_spare: rows that ran on the spare.
        recovered_s: from the end of the fault until the device had the operation again; None: it did not in time.
    """

    fault: Fault
    account: Account
    on_spare: int
    recovered_s: float | None


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
        account = await self._load(0.0, 0, CALIBRATE_S, proxied=False)
        if not account.clean:
            raise Failed(f"without any fault {account.lost} calls were lost and {account.wrong} answered wrongly")
        bins = [count for count in account.answered if count]
        steady = bins[len(bins) // 4 : -1] or bins
        self.capacity = sum(steady) / len(steady) / BIN_S

    async def under(self, fault: Fault, calls: int) -> Outcome:
        """Make calls, at least so many and for as long as the fault takes, and let it happen meanwhile."""
        rate = self._share * self.capacity
        seconds = max(fault.seconds, calls / rate)
        before = len(self.timeline.samples)
        loading = asyncio.create_task(self._load(rate, calls, seconds + 2 * REST_S, proxied=fault.proxied))
        try:
            await self._answers()
            began = self._now()
            await fault.cause(self._stage, seconds)
            ended = self._now()
            self.timeline.periods.append(Period(fault.name, began, ended))
            account = await loading
        finally:
            loading.cancel()
            await asyncio.wait({loading})
        recovered = await self._recovered(ended)
        spare = sum(sample.spare_rows for sample in self.timeline.samples[before:])
        return Outcome(fault, account, spare, recovered)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Ask the workers for their figures all the while."""
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            yield
            watching.cancel()

    def _now(self) -> float:
        return time.monotonic() - self._began_s

    async def _answers(self) -> None:
        """Return when the load is under way."""
        had = sum(self.timeline.answered)
        while sum(self.timeline.answered) == had:
            await self._change()

    async def _load(self, rate: float, calls: int, seconds: float, *, proxied: bool) -> Account:
        """Let the processes of the load call, and await their accounts."""
        settings = self._stage.proxied if proxied else self._stage.settings
        async with AsyncExitStack() as stack:
            processes = []
            for _ in range(self._processes):
                task = LoadTask(
                    settings=settings,
                    rate=rate / self._processes,
                    calls=-(-calls // self._processes),
                    seconds=seconds,
                    timeout_s=TIMEOUT_S,
                    began_s=self._began_s,
                    offset=SPACING * self._loads,
                )
                self._loads = (self._loads + 1) % 100
                processes.append(await stack.enter_async_context(child("load", "chaos.load", task, Told)))
            parts = await asyncio.gather(*(self._hear(process) for process in processes))
        whole = Account()
        for part in parts:
            whole.add(part)
        return whole

    async def _hear(self, process: Child[Told]) -> Account:
        """Follow a process of the load to its end."""
        last = Account()
        while told := await process.hear():
            self._note(last, told.account)
            last = told.account
        return last

    def _note(self, before: Account, now: Account) -> None:
        """Add what was answered since then to the timeline."""
        bins = self.timeline.answered
        bins += [0] * (len(now.answered) - len(bins))
        for number, count in enumerate(now.answered):
            bins[number] += count - (before.answered[number] if number < len(before.answered) else 0)
        self._changed.set()

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
