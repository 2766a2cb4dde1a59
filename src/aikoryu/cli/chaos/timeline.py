"""The timeline: what the workers told of themselves while faults came and went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

STATES = ("closed", "half_open", "open")


class Sample(msgspec.Struct):
    """What the workers told at a moment.

    Attributes:
        at_s: from the start of the timeline, s.
        device_rows, spare_rows: started since the sample before, on the device and on the spare.
        breaker: the operation's, the worst that any front told; empty where none told.
    """

    at_s: float
    device_rows: int
    spare_rows: int
    breaker: str


class Period(msgspec.Struct):
    """When a fault was at work, s from the start of the timeline."""

    fault: str
    began_s: float
    ended_s: float


class Timeline(msgspec.Struct):
    """All of a run.

    Attributes:
        samples: of the workers, in order.
        answered: right answers in each bin of `ledger.BIN_S`.
        periods: of the faults, in order.
    """

    samples: list[Sample] = []
    answered: list[int] = []
    periods: list[Period] = []


class Counters:
    """Turns the counters that workers tell into what happened since they were told last."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._before: dict[str, tuple[int, int]] = {}

    def sample(self, at_s: float, workers: Iterable[Mapping[str, Any]]) -> Sample:
        """What the workers' statistics say of the operation with this subject."""
        sample = Sample(at_s, 0, 0, "")
        for worker in workers:
            for endpoint in worker["endpoints"]:
                if endpoint["subject"] != self._subject:
                    continue
                data = endpoint["data"]
                rows, spare = data["rows"], data["spare_rows"]
                # A worker is seen for the first time: what it did before is no part of this run.
                rows_before, spare_before = self._before.get(worker["id"], (rows, spare))
                self._before[worker["id"]] = rows, spare
                sample.spare_rows += spare - spare_before
                sample.device_rows += rows - rows_before - (spare - spare_before)
                sample.breaker = max(sample.breaker, data["breaker"], key=_rank)
        return sample


def _rank(state: str) -> int:
    return STATES.index(state) if state in STATES else -1
