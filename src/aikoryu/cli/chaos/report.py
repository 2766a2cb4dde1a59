"""What a run came to, for a person."""

from __future__ import annotations

from collections.abc import Sequence

from ..table import table
from .run import Outcome

HEADING = ("fault", "times", "calls", "lost", "wrong", "twice", "longest wait", "on the spare", "recovered after")


def line(outcome: Outcome) -> str:
    """One fault, as it is over."""
    account = outcome.account
    verdict = "every call has its one right answer" if account.clean else _bad(outcome)
    return f"{outcome.fault.name}: {outcome.fault.what}. {account.calls:,} calls: {verdict}."


def figures(outcomes: Sequence[Outcome]) -> str:
    """The table: a line a fault."""
    return table([HEADING, *map(_cells, outcomes)], "<" + ">" * (len(HEADING) - 1))


def verdict(outcomes: Sequence[Outcome]) -> str:
    """What it comes to, in a sentence or a few."""
    calls = sum(outcome.account.calls for outcome in outcomes)
    if well(outcomes):
        return (
            f"{len(outcomes)} faults, {calls:,} calls: each got its one right answer. None lost, none answered twice."
        )
    lines = [f"{outcome.fault.name}: {_bad(outcome)}." for outcome in outcomes if not outcome.account.clean]
    lines += [f"{outcome.fault.name}: it did not happen." for outcome in outcomes if not outcome.happened]
    lines += [
        f"{outcome.fault.name}: the device was not back in time." for outcome in outcomes if outcome.recovered_s is None
    ]
    return "\n".join(lines)


def well(outcomes: Sequence[Outcome]) -> bool:
    """Whether every fault happened, every call got its one right answer, and the device was back each time."""
    return bool(outcomes) and all(
        outcome.happened and outcome.account.clean and outcome.recovered_s is not None for outcome in outcomes
    )


def _bad(outcome: Outcome) -> str:
    account = outcome.account
    codes = ", ".join(f"{count:,} {code}" for code, count in sorted(account.errors.items()))
    return f"{account.lost:,} lost ({codes or 'no error'}), {account.wrong:,} wrong, {account.twice:,} answered twice"


def _cells(outcome: Outcome) -> tuple[str, ...]:
    account = outcome.account
    recovered = "never" if outcome.recovered_s is None else f"{outcome.recovered_s:.1f} s"
    return (
        outcome.fault.name,
        f"{outcome.happened:,}",
        f"{account.calls:,}",
        f"{account.lost:,}",
        f"{account.wrong:,}",
        f"{account.twice:,}",
        f"{1000 * account.longest_s:,.0f} ms",
        f"{outcome.on_spare:,}",
        recovered,
    )
