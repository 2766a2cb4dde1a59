"""What the figures have to be: ratios of one run, each with what is done at and what is aimed at."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal, NamedTuple

from benchmarks.ours import NAME
from benchmarks.record import FAULTS, Samples

AIM, GOAL, SHORT, FAULTY, MISSING = "aim reached", "goal met", "short", "faults", "not measured"


class Value(NamedTuple):
    """A figure of a sample; `contestant` may be a pattern, `in-process-*`."""

    shape: str
    contestant: str
    figure: str = "rows_per_s"


@dataclass(frozen=True)
class Goal:
    """One line of the figures.

    Attributes:
        title: what is compared.
        mine: the value.
        theirs: what it is divided by; of several, the one that leaves the worst ratio. Empty: the value itself counts.
        goal: done at; None for a comparison without a goal.
        aim: aimed at, where that is more.
        better: whether a higher or a lower ratio is.
    """

    title: str
    mine: Value
    theirs: tuple[Value, ...] = ()
    goal: float | None = None
    aim: float | None = None
    better: Literal["higher", "lower"] = "higher"

    def verdict(self, got: float) -> str | None:
        """Whether the ratio reaches the aim, meets the goal or falls short; None without a goal."""
        if self.goal is None:
            return None
        sign = 1 if self.better == "higher" else -1
        if self.aim is not None and sign * got >= sign * self.aim:
            return AIM
        return GOAL if sign * got >= sign * self.goal else SHORT


def judge(goals: Sequence[Goal], samples: Samples) -> list[dict[str, Any]]:
    """Each goal whose shape ran, with the ratio, what decided it and the verdict, as JSON-ready data.

    A comparison without a goal is left out where its peer did not run.

    The ratio is the median over rounds of the ratios within a round; faults in what it is made of void it.
    """
    lines = [line(goal, *_found(goal, samples)) for goal in goals if goal.mine.shape in samples]
    return [one for one in lines if one["goal"] is not None or one["got"] is not None]


def line(goal: Goal, got: float | None, against: str | None = None, faults: Sequence[str] = ()) -> dict[str, Any]:
    """A goal with its ratio; `against` is the contestant that decided it, `faults` names who had any."""
    found = {
        "title": goal.title,
        "shape": goal.mine.shape,
        "better": goal.better,
        "goal": goal.goal,
        "aim": goal.aim,
        "got": got,
        "against": against,
        "verdict": MISSING if got is None else FAULTY if faults else goal.verdict(got),
    }
    return found | ({"faults": list(faults)} if faults else {})


def _found(goal: Goal, samples: Samples) -> tuple[float | None, str | None, list[str]]:
    mine = samples[goal.mine.shape].get(goal.mine.contestant, [])
    if not goal.theirs:
        values = [sample[goal.mine.figure] for sample in mine if sample.get(goal.mine.figure) is not None]
        return (round(statistics.median(values), 3) if values else None), None, _faulty(goal.mine.contestant, mine)
    candidates = [
        (ratio, name, [*_faulty(goal.mine.contestant, mine), *(_faulty(name, rounds) if rounds is not mine else [])])
        for theirs in goal.theirs
        for name, rounds in _matching(theirs, samples)
        if (ratio := _ratio(mine, goal.mine.figure, rounds, theirs.figure)) is not None
    ]
    if not candidates:
        return None, None, []
    worst = min if goal.better == "higher" else max
    return worst(candidates, key=lambda candidate: candidate[0])


def _matching(value: Value, samples: Samples) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for name, rounds in samples.get(value.shape, {}).items():
        if fnmatch(name, value.contestant):
            yield name, rounds


def _ratio(mine: list[dict[str, Any]], figure: str, theirs: list[dict[str, Any]], other: str) -> float | None:
    pairs = [(a[figure], b[other]) for a, b in zip(mine, theirs, strict=False) if a.get(figure) and b.get(other)]
    return round(statistics.median(a / b for a, b in pairs), 3) if pairs else None


def _faulty(name: str, rounds: list[dict[str, Any]]) -> list[str]:
    return [name] if any(sample[kind] for sample in rounds for kind in FAULTS) else []


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The figures as text."""
    form = "{:<67}{:>11}{:>12}{:>9}  {}"
    rows = [
        form.format(
            one["title"], number(one["goal"], one), number(one["aim"], one), number(one["got"]), one["verdict"] or ""
        )
        for one in lines
    ]
    return "\n".join([form.format("figure", "goal", "aim", "got", ""), *rows])


def number(value: float | None, limit_of: dict[str, Any] | None = None) -> str:
    """A figure for people, with the sign of its limit where it is one; from ten millions on three digits and M or G."""
    if value is None:
        return "—"
    if value >= 1e7:
        size, letter = (1e9, "G") if value >= 1e9 else (1e6, "M")
        whole = f"{value / size:.3g} {letter}"
    else:
        whole = f"{value:,.0f}" if value >= 1000 or isinstance(value, int) else ""
    if limit_of is None:
        return whole or f"{value:.2f}"
    return ("≥ " if limit_of["better"] == "higher" else "≤ ") + (whole or f"{value:g}")


def _echo(shape: str, frames: str) -> Iterator[Goal]:
    """Ratios of a shape with 512 rows in flight; mosec and FastStream have no call of many rows, so they ask singly."""
    mine = Value(shape, NAME)
    request = (2, 3) if shape == "row512" else (3.5, 5)
    asked = "awaited calls" if shape == "row512" else "call_many"
    for name, at, goal, aim in (
        ("nats-request", shape, *request),
        ("nats-mux", shape, None, None),
        ("greedy-batcher", shape, None, None),
        ("pure-echo", frames, 0.6, 0.8),
        ("mosec", "row512", 2, 3),
        ("faststream", "row512", 4, 6),
    ):
        yield Goal(f"512 rows in flight, {asked}: rows/s ÷ {PEERS[name]}", mine, (Value(at, name),), goal, aim)


PEERS = {
    "nats-request": "nc.request",
    "nats-mux": "own mux on nats-py",
    "greedy-batcher": "a 30-line batcher",
    "pure-echo": "equal frames echoed",
    "mosec": "mosec",
    "faststream": "FastStream",
}
_PLAIN = ("nats-request", "nats-mux")


def _plain(shape: str, figure: str = "rows_per_s") -> tuple[Value, ...]:
    """The plain service in a shape, by whichever client gets more out of it."""
    return tuple(Value(shape, name, figure) for name in _PLAIN)


BUS_GOALS = (
    *_echo("row512", "frames64"),  # bus.frame_bytes holds 64 rows
    *_echo("many512", "frames128"),  # a call of 128 rows is one frame
    Goal(
        "one caller: p50 ÷ nc.request",
        Value("one", NAME, "p50_ms"),
        (Value("one", "nats-request", "p50_ms"),),
        2,
        1.5,
        "lower",
    ),
    Goal("64 callers: rows/s ÷ plain service", Value("row64", NAME), _plain("row64"), 1),
    Goal(
        "64 callers: p99 ÷ plain service", Value("row64", NAME, "p99_ms"), _plain("row64", "p99_ms"), 1, None, "lower"
    ),
    Goal("64 callers: rows/s ÷ a 30-line batcher", Value("row64", NAME), (Value("row64", "greedy-batcher"),)),
    Goal("512 agents in 4 processes: rows/s ÷ plain service", Value("agents512", NAME), _plain("agents512"), 0.9, 1.1),
)

_EQUAL, _MIXED = Value("equal64", NAME), Value("mixed64", NAME)

EMBED_GOALS = (
    Goal("equal lengths: texts/s ÷ in-process batches", _EQUAL, (Value("equal64", "in-process-*"),), 0.95, 1),
    Goal(
        "equal lengths: p99 ÷ p50",
        _EQUAL._replace(figure="p99_ms"),
        (_EQUAL._replace(figure="p50_ms"),),
        1.5,
        1.1,
        "lower",
    ),
    Goal("equal lengths: texts/s ÷ mosec", _EQUAL, (Value("equal64", "mosec-*"),)),
    Goal("4 to 128 tokens: texts/s ÷ best mosec", _MIXED, (Value("mixed64", "mosec-*"),), 1.2, 1.5),
    Goal("4 to 128 tokens: texts/s ÷ mosec that pads", _MIXED, (Value("mixed64", "mosec-padded-*"),)),
    Goal("4 to 128 tokens: texts/s ÷ mosec that sorts", _MIXED, (Value("mixed64", "mosec-sorted-*"),)),
    Goal("4 to 128 tokens: texts/s ÷ in-process batches", _MIXED, (Value("mixed64", "in-process-*"),)),
    Goal(
        "256 callers hang up: next caller's time ÷ alone",
        Value("hangup256", NAME, "after_hang_up_ratio"),
        goal=1.5,
        better="lower",
    ),
)

MEMORY_GOAL = Goal(
    "worker's memory after 10⁷ rows ÷ after 10⁶", Value("memory", NAME, "rss"), goal=1.02, better="lower"
)
