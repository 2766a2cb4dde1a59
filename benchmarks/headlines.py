"""The few figures that README shows, from all records; every one, with those that fall short, is in docs/figures.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import goals, markdown, packets_plot

HEADLINES = {
    "bus": (
        "512 rows in flight, call_many: rows/s ÷ nc.request",
        "512 rows in flight, call_many: rows/s ÷ FastStream",
        "512 agents in 4 processes: rows/s ÷ plain service",
    ),
    "embed": ("4 to 128 tokens: texts/s ÷ mosec that pads", "4 to 128 tokens: texts/s ÷ best mosec"),
    "bus-cuda": ("call_many, 4 fronts: rows/s", "one caller, 1 front: p50, ms"),
    "matrix-cuda": ("1,024² f32, operands resident ÷ torch on all cores",),
    "embed-cuda": (
        "24 tokens, from ids ÷ best path on all cores",
        "from text over NATS, 4 fronts: sentences/s",
        "from text over NATS, 4 fronts ÷ encode, same GPU",
        "GPU busy under texts over NATS, 4 fronts",
    ),
    "faults-cuda": ("calls lost, all faults together",),
    "recovery-cuda": (
        "the engine is killed: to the spare's first answer, ms",
        "the engine is killed: to the first answer of a fresh one, s",
        "a client floods: others' p99 ÷ without it",
    ),
    "agents": (
        "handler, 512 calls in flight: calls/s ÷ nc.request to a plain service",
        "handler, 512 calls in flight: calls/s ÷ FastStream",
        "crowd: bytes an agent",
    ),
    "durable": ("durable jobs/s: submitted, run, stored, awaited",),
}
"""By record, the titles of its figures."""
PACKETS = {
    "packets-cuda": (
        "1,000 rules, keys that stay: lookups/s",
        "100,000 rules, keys that stay: lookups/s",
        "100,000 rules: lookups ÷ DPDK ACL on all cores",
        "packets that stay: dissect + classify, packets/s",
        "packets from host memory: dissect + classify ÷ copies alone",
        "flow table, 10 M live flows, Zipf 1.1: packets/s",
        "over NATS, 8 processes at top speed: packets/s",
    ),
    "packets": (
        "mixed real capture: read + dissect on two cores, packets/s",
        "mixed real capture: read + dissect on two cores ÷ nfstream",
        "mixed real capture: read + dissect on two cores ÷ tshark",
        "100,000 rules, one core each: lookups ÷ DPDK ACL",
    ),
    "replay_drift": ("replay at 1 ×: error of the time between two, p99, ms",),
}
"""The same of the section of packets."""
CONTEXT = {
    "context-maths-cuda": (
        "clustered: 256 puts, propagated and decided, ms",
        "clustered: 256 puts, torch on all cores ÷ ours",
        "uniform: 256 puts, torch on all cores ÷ ours",
    ),
    "context-route-cuda": (
        "64 messages, own contexts, bf16: ms",
        "64 messages, own contexts, bf16: torch's time ÷ ours",
    ),
    "context-bus-cuda": (
        "updates/s with p99 ≤ 20 ms, put to told",
        "the same ÷ on the CPU, there at any p99 if it never keeps that",
        "updates/s with a p99 no longer than the CPU's at its least load ÷ the CPU's there",
        "recovery from a snapshot, with the process's start, s",
        "hand-over under load: longest time without an update, s",
    ),
}
"""The same of the section of contexts, which shows whatever falls short, too."""
ABSENT = "Not measured yet: `python -m benchmarks.figures` measures."
ABSENT_PACKETS = "Not measured yet: see `python -m benchmarks.packets --help`."
ABSENT_CONTEXT = "Not measured yet: see `python -m benchmarks.context_maths --help`."


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """All records in a folder, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def section(records: Mapping[str, Mapping[str, Any]]) -> str:
    """README's part: the headlines by machine, and how many figures there are in all."""
    shown = chosen(records, HEADLINES)
    if not shown:
        return ABSENT
    told = _machines(records[name] for name in HEADLINES if name in records)
    return f"{shown}\n\n{told} {_count(records)}"


def packets(records: Mapping[str, Mapping[str, Any]]) -> str:
    """README's part about packets: a few figures and the plots."""
    pictures = [f"![{title}](benchmarks/results/{name})" for name, title in packets_plot.there(records).items()]
    return "\n\n".join([chosen(records, PACKETS) or ABSENT_PACKETS, *pictures])


def context(records: Mapping[str, Mapping[str, Any]]) -> str:
    """README's part about contexts: a few figures, and every one that falls short."""
    titles = {
        name: [
            one["title"]
            for one in records[name]["figures"]
            if one["title"] in wanted or one["verdict"] not in (goals.AIM, goals.GOAL, None)
        ]
        for name, wanted in CONTEXT.items()
        if name in records
    }
    shown = chosen(records, titles)
    if not shown:
        return ABSENT_CONTEXT
    told = [_GRAPHS.format(**record) for name, record in records.items() if name == "context-maths-cuda"]
    return "\n\n".join([shown, *told])


_GRAPHS = (
    "Graphs of {agents:,} agents that hear {degree} others each: *uniform*, any others; *clustered*, most of them near "
    "ones. Puts that come together are passed on until no more than ε of them is left anywhere."
)


def chosen(records: Mapping[str, Mapping[str, Any]], titles: Mapping[str, Iterable[str]]) -> str:
    """A table of some figures, each with its machine; empty if none of them is there.

    Args:
        records: all, by name.
        titles: of the figures, by record.
    """
    rows = [
        (
            one["title"],
            _machine(records[name]),
            goals.number(one["goal"], one),
            f"**{goals.number(one['got'])}**",
            one["verdict"] or "",
        )
        for name, wanted in titles.items()
        if name in records
        for title in wanted
        for one in records[name]["figures"]
        if one["title"] == title
    ]
    return markdown.table(("figure", "measured on", "goal", "measured", ""), "llrrl", rows) if rows else ""


def _machines(records: Iterable[Mapping[str, Any]]) -> str:
    told = {}
    for record in records:
        machine, gpu = record["machine"], record.get("gpu")
        host = f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}"
        told[_machine(record)] = f"{gpu['name']} in {host}" if gpu else host
    return "; ".join(f"{name}: {about}" for name, about in told.items()) + "."


def _count(records: Mapping[str, Mapping[str, Any]]) -> str:
    verdicts = [
        one["verdict"] for each in records.values() for one in each.get("figures", []) if one["goal"] is not None
    ]
    met, aims = verdicts.count(goals.GOAL), verdicts.count(goals.AIM)
    return (
        f"Of {len(verdicts)} figures that have a goal, {met + aims} meet it, {aims} of them what is aimed at beyond; "
        f"{len(verdicts) - met - aims} do not. [All of them, the machines, and why some fall short](docs/figures.md)."
    )


def _machine(record: Mapping[str, Any]) -> str:
    gpu = record.get("gpu")
    return gpu["name"].removeprefix("NVIDIA ").split(" ")[0] if gpu else f"{record['machine']['cores']} cores"
