"""A contestant: something that answers rows, with the way to start it and the way to ask it."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from benchmarks.shapes import Shape
from benchmarks.workloads import Workload


class Client(Protocol):
    """What a load process holds: one connection of one agent."""

    async def call(self, row: Any) -> Any:
        """Answer one row."""

    async def call_many(self, rows: Any) -> Any:
        """Answer rows, in their order."""


Window = tuple[float, float]  # when counting starts and ends, on time.perf_counter's clock


@dataclass(frozen=True)
class Served:
    """A running contestant.

    Attributes:
        address: what `Contestant.connect` needs to reach it.
        pids: process of each role; its children count with it. "service" is the one compared.
        metrics: addresses of its Prometheus metrics, if it has any (`stages.py` reads them).
    """

    address: str
    pids: Mapping[str, int]
    metrics: tuple[str, ...] = ()


@dataclass
class Tally:
    """What a load process saw.

    Attributes:
        rows: rows answered within the measured window.
        answered: rows answered at all, ramp and drain included: what the CPU time was spent on.
        latencies_s: of the calls answered within the window, in seconds.
        mismatches: rows answered with other values than expected.
        errors: calls that raised; `first_error` says what.
        unanswered: calls without an answer when the drain was over.
        more: further figures for the sample.
    """

    rows: int = 0
    answered: int = 0
    latencies_s: list[float] = field(default_factory=list)
    mismatches: int = 0
    errors: int = 0
    first_error: str | None = None
    unanswered: int = 0
    more: dict[str, float] = field(default_factory=dict)

    def count(self, rows: int, asked: float, now: float, window: Window) -> None:
        """Count an answer of `rows` rows; the times and the window are on one clock, in seconds."""
        self.answered += rows
        if window[0] <= now < window[1]:
            self.rows += rows
            self.latencies_s.append(now - asked)


Serve = Callable[[], AbstractAsyncContextManager[Served]]
Connect = Callable[[str], AbstractAsyncContextManager[Any]]
Drive = Callable[[Sequence[Any], Shape, Workload, float], Awaitable[Tally]]
Generator = Callable[[Served, Shape, float], Awaitable[dict[str, Any] | None]]


@dataclass(frozen=True)
class Contestant:
    """One line of the table.

    Attributes:
        name: unique name.
        serve: starts servers as processes of their own and yields where they are; leaving ends them.
        connect: opens one client in the load process.
        shapes: names of the shapes it runs in.
        needs: distributions without which it is skipped; their versions are recorded.
        drive: replaces the load loop (`load.DRIVES`) where there is nothing to call row by row.
        generator: a load generator that is a program of its own; returns None where it cannot run, and then the
            Python clients do.
    """

    name: str
    serve: Serve
    connect: Connect
    shapes: frozenset[str]
    needs: tuple[str, ...] = ()
    drive: Drive | None = None
    generator: Generator | None = None

    def missing(self) -> list[str]:
        """Distributions in `needs` that are not installed."""
        return [name for name in self.needs if not _installed(name)]


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def contestants(module: str) -> tuple[Contestant, ...]:
    """The `CONTESTANTS` of a module; modules import without the packages that their servers need."""
    found: tuple[Contestant, ...] = importlib.import_module(module).CONTESTANTS
    return found
