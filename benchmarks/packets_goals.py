"""What the figures of the network system have to be; see `goals.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks import goals, packets_acl
from benchmarks.goals import Goal, Value
from benchmarks.ours import NAME
from benchmarks.packets_reading import FLOWS, ONE, TSHARK, TWO
from benchmarks.packets_rules import SETS
from benchmarks.record import Samples

CORES = f"{NAME} on all cores"
ACL_CORES = f"{packets_acl.NAME} on all cores"
CAPTURES = {"own": "generated capture", "mixed": "mixed real capture"}

LOOKUPS = {1_000: (600e6, 1e9), 10_000: (400e6, 1e9), 100_000: (150e6, 500e6)}
"""Done at and aimed at on a GPU, by number of rules."""


def read_shape(capture: str) -> str:
    """Name of the shape in which a capture is read."""
    return f"read-{capture}"


def rules_shape(name: str, size: int) -> str:
    """Name of the shape of lookups in a rule set."""
    return f"{name}-{size}"


def _reading(capture: str) -> Iterator[Goal]:
    shape, title = read_shape(capture), CAPTURES[capture]
    two = Value(shape, TWO)
    cpu = Value(shape, ONE, "cpu_us")
    meter = Value(shape, "nfstream")
    yield Goal(f"{title}: read + dissect on two cores, packets/s", two, (), 2e6, 5e6)
    yield Goal(f"{title}: read + dissect on two cores ÷ nfstream", two, (meter,), 8)
    yield Goal(f"{title}: read + dissect on two cores ÷ tshark", two, (Value(shape, TSHARK),), 40)
    yield Goal(f"{title}: CPU time a packet, nfstream ÷ Aikoryu", meter._replace(figure="cpu_us"), (cpu,), 8)
    yield Goal(f"{title}: CPU time a packet, tshark ÷ Aikoryu", Value(shape, TSHARK, "cpu_us"), (cpu,), 40)
    yield Goal(f"{title}: CPU time a packet, dpkt ÷ Aikoryu", Value(shape, "dpkt", "cpu_us"), (cpu,))
    yield Goal(f"{title}: with flows, one process: packets/s", Value(shape, FLOWS))
    yield Goal(f"{title}: with flows, one process ÷ nfstream", Value(shape, FLOWS), (meter,))


READING = tuple(goal for capture in CAPTURES for goal in _reading(capture))

DEVICE = (
    Goal("packets that stay: dissect + classify, packets/s", Value("resident", NAME), (), 150e6, 300e6),
    Goal(
        "packets from host memory: dissect + classify ÷ copies alone",
        Value("host", NAME),
        (Value("host", "copies alone"),),
        0.6,
        0.9,
    ),
    Goal("flow table, 10 M flows, uniform: packets/s", Value("flows-uniform", NAME), (), 50e6),
    Goal("flow table, 10 M flows, Zipf 1.1: packets/s", Value("flows-zipf", NAME), (), 15e6),
    Goal("flow table: bytes a flow", Value("flows-uniform", NAME, "bytes_a_flow"), (), None, None, "lower"),
    Goal("over NATS, 8 processes at top speed: packets/s", Value("nats", NAME)),
)


def judged(samples: Samples, on_device: bool) -> list[dict[str, Any]]:
    """Every figure of which something was measured; lookups by the set in which they are worst."""
    sizes = sorted({int(shape.rpartition("-")[2]) for shape in samples if shape.startswith(tuple(SETS))})
    lines = [line for size in sizes for line in _lookups(size, samples, on_device)]
    return [*goals.judge(DEVICE if on_device else READING, samples), *lines]


def _lookups(size: int, samples: Samples, on_device: bool) -> Iterator[dict[str, Any]]:
    ours = Value("", NAME)
    if on_device:
        goal, aim = LOOKUPS.get(size, (None, None))
        wanted: tuple[Goal, ...] = (
            Goal(f"{size:,} rules, keys that stay: lookups/s", ours, (), goal, aim),
            Goal(f"{size:,} rules: lookups ÷ {ACL_CORES}", ours, (Value("", ACL_CORES),), 3),
            Goal(f"{size:,} rules: lookups ÷ {CORES}", ours, (Value("", CORES),)),
        )
    else:
        wanted = (
            Goal(f"{size:,} rules, one core: lookups/s", ours),
            Goal(f"{size:,} rules, one core each: lookups ÷ {packets_acl.NAME}", ours, (Value("", packets_acl.NAME),)),
        )
    for one in wanted:
        each = [_in_set(one, rules_shape(name, size)) for name in SETS]
        yield from _worst(goals.judge(each, samples))


def _in_set(goal: Goal, shape: str) -> Goal:
    return replace(
        goal, mine=goal.mine._replace(shape=shape), theirs=tuple(one._replace(shape=shape) for one in goal.theirs)
    )


def _worst(lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of the same figure in several sets the least, which counts; it names its set."""
    found = [one for one in lines if one["got"] is not None] or lines
    if found:
        least = min(found, key=lambda one: one["got"] or 0)
        yield least | {"against": least["shape"].partition("-")[0]}
