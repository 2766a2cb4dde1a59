"""Fallback: where an operation's batches go, and what becomes of one that came to nothing.

Pure: the time is an argument, nothing is awaited. A worker has a device, and on a GPU a *spare* beside it, the CPU. An
operation whose breaker is open, or whose device is down, goes to the spare; a batch that failed on the device through
no fault of its rows is run again there, in parts as small as a lane's first batch, or its first callers would wait for
as long as the whole batch takes there. An engine that died with a batch may have died of it: the second time its frames
run one by one, so that the guilty one fails alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from .breaker import Breaker, BreakerLimits, State
from .operation import Operation
from .parts import cut, split
from .plan import Place, Plan

MAX_RUNS = 3  # of a batch that its engine does not survive


@dataclass(slots=True)
class Verdict:
    """Whether a batch failed on the device through the device's fault: if all its parts end well on the spare.

    Attributes:
        left: parts that have not.
    """

    left: int


@dataclass(slots=True)
class Part(Plan):
    """A part, on the spare, of a batch that failed on the device.

    Attributes:
        verdict: on the device, and shared by all parts.
    """

    verdict: Verdict = field(kw_only=True)


class Fallback:
    """Decides for one front.

    Attributes:
        device: where batches go as long as it works.
        spare: where they go otherwise; None if there is nothing else.
        breakers: by operation; only where there is a spare.
    """

    def __init__(self, device: Place, spare: Place | None, limits: BreakerLimits) -> None:
        self.device = device
        self.spare = spare
        self.breakers: dict[str, Breaker] = {}
        self._limits = limits

    @property
    def down(self) -> bool:
        """No engine takes batches."""
        return not self.device.slots and not (self.spare and self.spare.slots)

    def state(self, operation: str) -> State:
        """What an operation's breaker lets through to the device."""
        breaker = self.breakers.get(operation)
        return breaker.state if breaker is not None else State.CLOSED

    def home(self, operation: str) -> Place:
        """Where new rows of an operation belong."""
        breaker = self.breakers.get(operation)
        if self.device.slots and (breaker is None or breaker.state is State.CLOSED):
            return self.device
        # Where neither takes batches, rows wait for the device.
        return self.spare if self.spare is not None and self.spare.slots else self.device

    def reason(self, operation: str) -> str:
        """Why rows of an operation go to the spare."""
        return "breaker_open" if self.device.slots else "engine_down"

    def tries(self, plan: Plan, operation: str, now: float) -> bool:
        """Whether a batch meant for the spare goes to the device, to see whether that works again."""
        breaker = self.breakers.get(operation)
        return (
            plan.place is self.spare
            and plan.runs == 0
            and breaker is not None
            and breaker.state is not State.CLOSED
            and self.device.running < self.device.slots
            and breaker.admits(now)
        )

    def ended(self, plan: Plan, operation: str, now: float) -> None:
        """A batch ended well; where it had failed on the device before, it was the device's fault."""
        if self.spare is None:
            return
        breaker = self.breakers.get(operation)
        if plan.place is self.device:
            if breaker is not None:
                breaker.succeeded()
        elif isinstance(plan, Part) and plan.reason == "operation_failed":
            plan.verdict.left -= 1
            if not plan.verdict.left:
                self._breaker(operation).failed(now)

    def failed(self, plan: Plan, operation: Operation) -> tuple[Place | None, list[Plan]]:
        """Where a batch runs again whose operation raised, and as which batches; None: its callers get the error."""
        if self.spare is None or not self.spare.slots or plan.place is self.spare or not operation.pure:
            return None, [plan]
        parts = cut(plan, self.spare.first_rows)
        verdict = Verdict(len(parts))
        return self.spare, [
            Part(*(getattr(part, each.name) for each in fields(Plan)), verdict=verdict) for part in parts
        ]

    def died(self, place: Place, operations: set[str], now: float) -> None:
        """An engine died while it had batches of these operations."""
        if self.spare is not None and place is self.device:
            for operation in operations:
                self._breaker(operation).failed(now)

    def lost(self, plan: Plan, operation: Operation) -> tuple[Place | None, list[Plan]]:
        """Where a batch runs again whose engine died, and as which batches; None: its callers get the error."""
        if not operation.pure or plan.runs + 1 >= MAX_RUNS:
            return None, [plan]
        place = self.refuge(plan.place)
        plans = split(plan) if plan.runs else [plan]
        return place, [part for each in plans for part in self.parts(each, place)]

    def parts(self, plan: Plan, place: Place) -> list[Plan]:
        """A batch that ran elsewhere, as batches for this place."""
        return [plan] if place is plan.place else cut(plan, place.first_rows)

    def refuge(self, place: Place) -> Place:
        """Where batches of an engine that died go: to the other one if that takes any, or they wait for the next."""
        other = self.spare if place is self.device else self.device
        return other if other is not None and other.slots else place

    def _breaker(self, operation: str) -> Breaker:
        return self.breakers.setdefault(operation, Breaker(self._limits))
