"""What README and the results' page say of faults and of durable jobs, from `benchmarks/results/faults*.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from aikoryu.cli.chaos import plot
from aikoryu.cli.chaos.timeline import Timeline
from benchmarks import goals, markdown

NAMES = ("recovery", "recovery-cuda", "durable", "faults", "faults-cuda")
_HEAD = ("fault", "what happens", "times", "calls", "lost", "wrong", "twice", "longest wait, ms", "rows on the spare")

Results = dict[str, dict[str, Any]]


def load(folder: Path) -> Results:
    """The results in a folder, by the record's name; those that are not there are left out."""
    paths = {name: folder / f"{name}.json" for name in NAMES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def section(results: Results) -> str:
    """README's part: the goals, a column a machine; empty without results."""
    if not results:
        return ""
    picture = f"![{_picture(results)}](benchmarks/results/{_best(results)}.svg)" if _best(results) else ""
    return "\n\n".join(filter(None, ["### When something fails", _pivot(results), _about(results), picture]))


def page(results: Results) -> Iterator[str]:
    """The parts of the results' page."""
    if not results:
        return
    yield "# When something fails"
    yield _pivot(results)
    for name, result in results.items():
        if "faults" in result:
            yield f"## Calls under faults, {_machine(result)}"
            yield f"![{result['title']}]({name}.svg)"
            yield markdown.table(_HEAD, "ll" + "r" * (len(_HEAD) - 2), [_cells(fault) for fault in result["faults"]])
        elif "felt" in result:
            yield f"## How long it is felt, {_machine(result)}"
            yield markdown.table(("figure", "samples"), "lr", list(_samples(result)))
        else:
            yield f"## Durable jobs, {_machine(result)}"
            yield _jobs(result)
        yield f"{_provenance(result)} `{result['command']}`"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """The timeline of a record."""
    plot.draw(msgspec.convert(result["timeline"], Timeline), result["title"], path)


def _pivot(results: Results) -> str:
    """A line a goal, with its figure on each machine."""
    columns = list(dict.fromkeys(_machine(result) for result in results.values()))
    lines: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results.values():
        for one in result["figures"]:
            lines.setdefault(one["title"], {})[_machine(result)] = one
    rows = []
    for title, by in lines.items():
        any_ = next(iter(by.values()))
        cells = [_figure(by.get(column)) for column in columns]
        rows.append((title, goals.number(any_["goal"], any_), goals.number(any_["aim"], any_), *cells))
    return markdown.table(("figure", "goal", "aim", *columns), "lrr" + "r" * len(columns), rows)


def _figure(one: Mapping[str, Any] | None) -> str:
    return "—" if one is None else f"**{goals.number(one['got'])}** {one['verdict']}"


def _about(results: Results) -> str:
    """How many calls there were, and on what it was measured."""
    calls = [
        f"{sum(fault['calls'] for fault in result['faults']):,} calls under {len(result['faults'])} faults on "
        f"{_machine(result)}"
        for result in results.values()
        if "faults" in result
    ]
    counted = [f"{'; '.join(calls)}, at half of what is possible; of each time the longest counts."] if calls else []
    measured = [_provenance(result) for result in results.values()]
    more = "Fault by fault: [benchmarks/results](benchmarks/results/README.md)."
    return " ".join([*counted, *dict.fromkeys(measured), more])


def _best(results: Results) -> str:
    """The record whose timeline is shown: that of a GPU where there is one."""
    return next((name for name in reversed(NAMES) if "timeline" in results.get(name, {})), "")


def _picture(results: Results) -> str:
    return str(results[_best(results)]["title"])


def _cells(fault: Mapping[str, Any]) -> tuple[str, ...]:
    counts = [f"{fault[name]:,}" for name in ("happened", "calls", "lost", "wrong", "twice")]
    return fault["fault"], fault["what"], *counts, f"{fault['longest_ms']:,.0f}", f"{fault['on_spare']:,}"


def _samples(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for title, samples in result["felt"].items():
        yield title, ", ".join(f"{sample:g}" for sample in samples)


def _jobs(result: Mapping[str, Any]) -> str:
    kills = [
        f"{role} killed {one['kills']} times: {one['accepted']:,} jobs accepted, {one['lost']} lost, the longest took "
        f"{one['max_ms'] / 1e3:.1f} s"
        for role, one in result["kills"].items()
    ]
    return "; ".join([f"{result['callers']:,} callers that each submit a job and await it", *kills]) + "."


def _machine(result: Mapping[str, Any]) -> str:
    gpu, cores = result.get("gpu"), result["machine"]["cores"]
    return f"{gpu['name']}" if gpu else f"{cores} cores"


def _provenance(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    return (
        f"{_machine(result)}: {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; "
        f"{markdown.stamp(result)}."
    )
