"""What came of a replay: how fast it went, what failed, and where answers differ from the recorded ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..bus.differences import Difference
from ..netio.pacing import Paced
from .latencies import Latencies


@dataclass
class Tally:
    """What came of one operation.

    Attributes:
        frames, rows: requests sent, and their rows.
        answered: frames answered whole, errors among the answers or not.
        errors: rows that got an error, by code.
        latencies: of the frames answered.
        compared, differing: rows compared with the recording, and those of them that differ.
        untold: rows that the recording has no answer to.
    """

    frames: int = 0
    rows: int = 0
    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies: Latencies = field(default_factory=Latencies)
    compared: int = 0
    differing: int = 0
    untold: int = 0


@dataclass
class Report:
    """What came of a replay.

    Attributes:
        operations: by operation.
        skipped: frames of the recording that are not sent, by operation: they change, or need, what a worker keeps.
        paced: how the pace was kept.
        seconds: from the first request to the last answer.
        differences: the first of them.
    """

    operations: dict[str, Tally] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    paced: Paced = field(default_factory=Paced)
    seconds: float = 0.0
    differences: list[Difference] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows sent."""
        return sum(tally.rows for tally in self.operations.values())

    @property
    def errors(self) -> Counter[str]:
        """Rows that got an error, by code."""
        return sum((tally.errors for tally in self.operations.values()), Counter())

    @property
    def compared(self) -> int:
        """Rows compared with the recording."""
        return sum(tally.compared for tally in self.operations.values())

    @property
    def differing(self) -> int:
        """Rows that differ from the recording."""
        return sum(tally.differing for tally in self.operations.values())

    def plain(self) -> dict[str, Any]:
        """The report as JSON has it; times in s."""
        return {
            "seconds": self.seconds,
            "frames": self.paced.sent,
            "rows": self.rows,
            "bytes": self.paced.bits // 8,
            "late": self.paced.late,
            "worst_late_s": self.paced.worst_ns / 1e9,
            "drift_s": self.paced.last_ns / 1e9,
            "unsent": self.paced.unsent,
            "skipped": dict(self.skipped),
            "compared": self.compared,
            "differing": self.differing,
            "operations": {name: _plain(tally) for name, tally in sorted(self.operations.items())},
            "differences": [{name: getattr(each, name) for name in Difference.__slots__} for each in self.differences],
        }


def _plain(tally: Tally) -> dict[str, Any]:
    latencies = tally.latencies
    return {
        "frames": tally.frames,
        "rows": tally.rows,
        "answered": tally.answered,
        "errors": dict(tally.errors),
        "latency_s": {
            "p50": latencies.quantile_s(0.5),
            "p90": latencies.quantile_s(0.9),
            "p99": latencies.quantile_s(0.99),
            "max": latencies.longest_ns / 1e9,
        },
        "compared": tally.compared,
        "differing": tally.differing,
        "untold": tally.untold,
    }
