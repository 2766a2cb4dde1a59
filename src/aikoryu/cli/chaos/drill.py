"""`aikoryu demo --faults`: every fault in turn under load, and the same verdict as the demo without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...config import Settings
from ..progress import Progress, say
from . import plot, report
from .faults import FAULTS, Fault
from .run import Outcome, Run
from .stage import stage
from .timeline import Timeline

CALLS = 20_000
SHARE = 0.5
"""Of the calls that are answered without a pause, how many are made."""


@dataclass(frozen=True)
class Drill:
    """What came of a drill.

    Attributes:
        capacity: calls answered a second without faults and without a pause.
        outcomes: one a fault.
        timeline: of all of it.
    """

    capacity: float
    outcomes: list[Outcome]
    timeline: Timeline


async def drill(
    settings: Settings,
    faults: Sequence[Fault],
    calls: int,
    processes: int,
    so_far: Callable[[Drill], None] = lambda done: None,
) -> Drill:
    """Run a server and a worker, and let one fault after the other happen to them under load.

    Args:
        settings: all groups; what a drill needs is set here.
        faults: in order.
        calls: made while each is at work, at least.
        processes: that make them.
        so_far: called after each fault, so that a drill that is cut short leaves something.

    Raises:
        Failed: it cannot be begun, or a fault cannot be caused.
        BusError: the bus failed where no fault was at work.
    """
    progress = Progress()
    outcomes: list[Outcome] = []
    try:
        progress.show("starting a NATS server and a worker of two fronts ...")
        async with stage(settings) as on:
            run = Run(on, processes, SHARE)
            async with run.watched():
                progress.show("calling without a pause, to see how much is half of it ...")
                await run.calibrate()
                for fault in faults:
                    progress.show(f"{fault.name}: {fault.what} ...")
                    outcomes.append(await run.under(fault, calls))
                    progress.close()
                    say(report.line(outcomes[-1]))
                    so_far(Drill(run.capacity, outcomes, run.timeline))
            progress.show("the worker ends ...")
    finally:
        progress.close()
    return Drill(run.capacity, outcomes, run.timeline)


async def demonstrate(settings: Settings, picture: Path | None) -> int:
    """Drill with every fault, print the table and the verdict, draw the picture; 1 if a call was lost or wrong."""
    done = await drill(settings, FAULTS, CALLS, processes=1)
    print(report.figures(done.outcomes), report.verdict(done.outcomes), sep="\n\n")
    if picture is not None:
        try:
            plot.draw(done.timeline, title(done), picture)
        except ImportError:
            say(f"No picture: matplotlib is missing, pip install 'aikoryu[plot]' and {picture} is drawn next time.")
        else:
            print(f"\nThe timeline is in {picture}.")
    return 0 if report.well(done.outcomes) else 1


def title(done: Drill) -> str:
    """What the picture shows, in a sentence."""
    calls = sum(outcome.account.calls for outcome in done.outcomes)
    lost = sum(outcome.account.lost for outcome in done.outcomes)
    return f"{calls:,} calls at half of {done.capacity:,.0f} a second, a fault at a time: {lost:,} lost"
