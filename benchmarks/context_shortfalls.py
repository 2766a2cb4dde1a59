"""Where figures of contexts fall short, and why, as far as the records tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

from benchmarks import goals
from benchmarks.ours import NAME

CPU, FLOOR, TORCH = "torch on all cores", "only gathered", "torch"
KINDS = ("uniform", "clustered")
WIDTH = 384
"""Numbers of a vector, in all three benchmarks."""
STEP_BYTES = 18
"""Of a number that a sweep over all rows reads and writes beside gathering: Z + R into Z, X0, R anew."""
MEMORY = {"H100": 3.35, "H200": 4.8}
"""TB/s of a GPU's memory at the most. Source: the data sheets of the SXM modules."""

LIMIT_MS = 20
"""What 99 of 100 updates are to take at the most."""
ALIKE = 0.8
"""Numbers of which one is so much of the other count as the same."""

Result = Mapping[str, Any]


class Reason(NamedTuple):
    """What keeps figures from their goals or aims.

    Attributes:
        record: of the figures.
        titles: of them, a pattern.
        told: says it, by the record's numbers.
    """

    record: str
    titles: str
    told: Callable[[Result], str]


def shortfalls(results: Mapping[str, Result]) -> list[str]:
    """A line for the figures of each reason that miss goal or aim, and for each that misses its goal without one."""
    found = []
    for name, result in results.items():
        missed = [one for one in result["figures"] if _misses(one)]
        for reason in REASONS:
            if name.startswith(reason.record):
                of = [one for one in missed if fnmatch(one["title"], reason.titles)]
                missed = [one for one in missed if one not in of]
                found += [f"{_named(of)}: {reason.told(result)}"] if of else []
        found += [f"{_named([one])}." for one in missed]
    return found


def beside(results: Mapping[str, Result]) -> list[str]:
    """What has no goal, and belongs beside the figures that have."""
    found = [line for name, result in results.items() if "maths" in name for line in _windows(result)]
    found += [line for name, result in results.items() if "route" in name for line in _slower(result)]
    found += [line for name, result in results.items() if "bus" in name for line in _stolen(result)]
    return found


def _misses(one: Mapping[str, Any]) -> bool:
    """Whether a figure misses what is aimed at, where something is, or else its goal."""
    best = goals.GOAL if one["aim"] is None else goals.AIM
    return one["goal"] is not None and one["verdict"] != best


def _named(figures: Sequence[dict[str, Any]]) -> str:
    """The figures with what they are and what is wanted."""
    told = []
    for one in figures:
        limit = one["goal"] if one["verdict"] != goals.GOAL else one["aim"]
        wanted = f"{'the aim' if one['verdict'] == goals.GOAL else 'the goal'} is {goals.number(limit, one)}"
        told.append(f"*{one['title']}* {goals.number(one['got'])}, {wanted}")
    return "; ".join(told)


def _sweep(result: Result) -> str:
    memory = next((rate for gpu, rate in MEMORY.items() if gpu in (result.get("gpu") or {"name": ""})["name"]), None)
    rows, heard = result["agents"], result["degree"] + 1
    gathered_gb = 4e-9 * WIDTH * rows * heard
    times = {kind: result["medians"].get(f"full-{kind}", {}) for kind in KINDS}
    steps = [
        f"{kind} {by[NAME]['p50_ms']:.1f} ms, of which gathering alone takes {by[FLOOR]['p50_ms']:.1f}: "
        f"{gathered_gb / by[FLOOR]['p50_ms']:.1f} TB/s"
        for kind, by in times.items()
        if FLOOR in by
    ]
    streamed_gb = 1e-9 * STEP_BYTES * WIDTH * rows
    at_least = f", {streamed_gb / memory:.1f} ms at the {memory:g} TB/s of its memory" if memory else ""
    return (
        f"of each agent {heard} rows of Z are gathered, {gathered_gb:.0f} GB ({'; '.join(steps)}). What is more than "
        "memory gives comes from caches. A sweep also reads R, Z and X0 and writes Z and R, once each and so past the "
        f"caches: {streamed_gb:.1f} GB{at_least}."
    )


def _sweeps(result: Result) -> str:
    of = {kind: _sample(result, f"window-256-{kind}", NAME) for kind in KINDS}
    told = [f"{kind} {one['pushes']:.0f} over {one['edges']:,.0f} edges in all" for kind, one in of.items() if one]
    return f"a window takes sweeps one after another, {'; '.join(told)}."


def _messages(result: Result) -> str:
    times = {many: result["medians"].get(f"own-{many}", {}).get(NAME, {}).get("p50_ms") for many in (1, 64, 256)}
    told = f"by own contexts, {', '.join(f'{many} take {ms:.2f} ms' for many, ms in times.items() if ms)}."
    if times[1] and times[64] and times[1] > ALIKE * times[64]:
        return told + " What takes as long for one as for 64 is not the product, but what is done around it."
    return told


def _over_nats(result: Result) -> str:
    return " ".join(f"{_KEEPERS[kind]}: {_step(steps)}." for kind, steps in result["steps"].items())


_KEEPERS = {"device": "As it is", "cpu": "On the CPU", "alone": "With a window for each update"}


def _step(steps: Sequence[Mapping[str, Any]]) -> str:
    """The first and the last of the steps."""
    return " to ".join(
        f"{one['updates_per_s']:,.0f}/s of {one['at_once']:,} at once (p99 {_ms(one['put'])} until answered, "
        f"{_ms(one['told'])} until told)"
        for one in (*steps[:1], *steps[1:][-1:])
    )


def _ms(latencies: Mapping[str, float]) -> str:
    return f"{latencies['p99_ms']:.1f} ms" if latencies else "—"


REASONS = (
    Reason("context-maths", "*: a sweep over all rows*", _sweep),
    Reason("context-maths", "*: 256 puts*", _sweeps),
    Reason("context-route", "*: ms", _messages),
    Reason("context-bus", "*the same ÷*", _over_nats),
)


def _windows(result: Result) -> Iterator[str]:
    """What the figures of windows leave out."""
    mine = {kind: _sample(result, f"window-256-{kind}", NAME) for kind in KINDS}
    theirs = {kind: _sample(result, f"window-256-{kind}", CPU) for kind in KINDS}
    put = ", ".join(f"{one['put_ms']:.1f} ms ({kind})" for kind, one in mine.items() if one)
    if put:
        yield f"The puts themselves come before, and are not in these times: {put} for 256."
    shares = {kind: theirs[kind]["edges"] / mine[kind]["edges"] for kind in KINDS if mine[kind] and theirs[kind]}
    if any(share < ALIKE for share in shares.values()):
        told = " and ".join(f"{share:.2f} ({kind})" for kind, share in shares.items())
        yield (
            f"The CPU draws windows of its own. Those of 256 puts go along {told} of the edges that ours go along: "
            "torch's times are too short by about as much."
        )
    costs = [f"{cost['measured']:g} ({kind})" for kind, cost in result["push_cost"].items()]
    used = {cost["used"] for cost in result["push_cost"].values()}
    full = ", ".join(
        f"{many['p50_ms']:.1f} ms beside {whole[NAME]['p50_ms']:.1f} ({kind})"
        for kind in KINDS
        if (many := _sample(result, f"window-4096-{kind}", NAME)) and (whole := result["medians"].get(f"full-{kind}"))
    )
    if costs and full:
        reckoned = " and ".join(f"{one:g}" for one in used)
        yield (
            f"An edge of a sweep over some rows costs {' and '.join(costs)} times one of a sweep over all; when one of "
            f"them is chosen, {reckoned} is reckoned with. A window of 4,096 puts takes {full} of one sweep over all, "
            "of which it would take several."
        )


def _stolen(result: Result) -> Iterator[str]:
    """What a hypervisor took while updates were measured."""
    rounds = [one for steps in result["steps"].values() for step in steps for one in step["rounds"]]
    shares = [one["stolen"] for one in rounds]
    if any(shares):
        late = sum(one["put"].get("p99_ms", 0) > LIMIT_MS for one in rounds)
        yield (
            f"While updates were measured, the machine's hypervisor gave {100 * min(shares):.1f} to "
            f"{100 * max(shares):.1f} % of the CPU time that was asked for to others. Of {len(rounds)} rounds {late} "
            f"had a p99 beyond {LIMIT_MS:g} ms until answered."
        )


def _slower(result: Result) -> Iterator[str]:
    """Where torch is faster than ours, and what memory it takes."""
    faster = [
        f"{by[TORCH]['p50_ms'] / by[NAME]['p50_ms']:.2f} ({result['shapes'][shape]['title']})"
        for shape, by in result["medians"].items()
        if TORCH in by and by[TORCH]["p50_ms"] < by[NAME]["p50_ms"]
    ]
    if faster:
        most = {
            name: max((by[name].get("temporary_mib", 0) for by in result["medians"].values() if name in by), default=0)
            for name in (NAME, TORCH)
        }
        yield (
            "torch, which writes all scores and looks for the best of them, takes less of our time for few messages: "
            f"{', '.join(faster)}. It takes up to {most[TORCH]:,.0f} MiB, ours up to {most[NAME]:,.0f}."
        )


def _sample(result: Result, shape: str, name: str) -> Mapping[str, Any]:
    rounds = result["samples"].get(shape, {}).get(name, [])
    return rounds[0] if rounds else {}
