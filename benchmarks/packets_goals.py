"""What the figures of the network system have to be; see `goals.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
COPIES = "copies alone"
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

_RESIDENT, _HOST = Value("resident", NAME), Value("host", NAME)

PACKETS = (
    Goal("packets that stay: dissect + classify, packets/s", _RESIDENT, (), 150e6, 300e6),
    Goal("packets from host memory: dissect + classify ÷ copies alone", _HOST, (Value("host", COPIES),), 0.6, 0.9),
)
"""Of each capture; the least counts."""

DEVICE = (
    Goal("flow table, 10 M live flows, uniform: packets/s", Value("flows-uniform", NAME), (), 50e6),
    Goal("flow table, 10 M live flows, Zipf 1.1: packets/s", Value("flows-zipf", NAME), (), 15e6),
    Goal("flow table: bytes a flow", Value("flows-uniform", NAME, "bytes_a_flow"), better="lower"),
    Goal("over NATS, 8 processes at top speed: packets/s", Value("nats", NAME)),
)


def judged(samples: Samples, on_device: bool) -> list[dict[str, Any]]:
    """Every figure of which something was measured; of several rule sets or captures the one in which it is least."""
    sizes = sorted({int(shape.rpartition("-")[2]) for shape in samples if shape.startswith(SETS)})
    lookups = [goal for size in sizes for goal in (_device_lookups(size) if on_device else _core_lookups(size))]
    found = list(_least(lookups, SETS, samples))
    if not on_device:
        return [*(one | {"against": None} for one in goals.judge(READING, samples)), *found]  # titles say it
    return [*found, *_least(PACKETS, tuple(CAPTURES), samples, ends=True), *goals.judge(DEVICE, samples)]


def _device_lookups(size: int) -> Iterator[Goal]:
    ours = Value(str(size), NAME)
    yield Goal(f"{size:,} rules, keys that stay: lookups/s", ours, (), *LOOKUPS.get(size, (None, None)))
    yield Goal(f"{size:,} rules: lookups ÷ {ACL_CORES}", ours, (ours._replace(contestant=ACL_CORES),), 3)
    yield Goal(f"{size:,} rules: lookups ÷ {CORES}", ours, (ours._replace(contestant=CORES),))


def _core_lookups(size: int) -> Iterator[Goal]:
    ours, acl = Value(str(size), NAME), packets_acl.NAME
    yield Goal(f"{size:,} rules, one core: lookups/s", ours)
    yield Goal(f"{size:,} rules, one core each: lookups ÷ {acl}", ours, (ours._replace(contestant=acl),))


def _least(
    wanted: Iterable[Goal], names: Sequence[str], samples: Samples, ends: bool = False
) -> Iterator[dict[str, Any]]:
    """Each figure in the shape in which it is least; it says which of the names that is.

    Args:
        wanted: goals whose shapes lack a name.
        names: that stand before the shapes.
        samples: what was measured.
        ends: whether they stand behind them.
    """
    for goal in wanted:
        shapes = {f"{goal.mine.shape}-{name}" if ends else f"{name}-{goal.mine.shape}": name for name in names}
        lines = goals.judge([_in_shape(goal, shape) for shape in shapes], samples)
        if lines := [one for one in lines if one["got"] is not None] or lines:
            least = min(lines, key=lambda one: one["got"] or 0)
            yield least | {"against": shapes[least["shape"]]}


def _in_shape(goal: Goal, shape: str) -> Goal:
    theirs = tuple(one._replace(shape=shape) for one in goal.theirs)
    return replace(goal, mine=goal.mine._replace(shape=shape), theirs=theirs)
