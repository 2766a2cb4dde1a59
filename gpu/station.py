"""Stations: an engine as the front uses it, and the batches it has."""

from __future__ import annotations

from dataclasses import dataclass

from .admission import LaneSpec
from .engine import Engine
from .planner import Place, Plan


@dataclass(slots=True)
class Running:
    """A batch an engine has.

    Attributes:
        plan: its rows.
        spec: what they have in common.
        slab: number of the slab they lie in.
        started: when it was handed over, monotonic time, s.
    """

    plan: Plan
    spec: LaneSpec
    slab: int
    started: float


class Station:
    """An engine as the front uses it.

    Attributes:
        engine: where batches run.
        place: what the planner knows of it.
        free: numbers of the slabs that hold nothing.
        running: what it has, by the batch's number.
        ended: when it last ended a batch: one that was handed over before has begun no earlier, monotonic time, s.
    """

    def __init__(self, engine: Engine, first_rows: int) -> None:
        self.engine = engine
        self.place = Place(engine.name, first_rows=first_rows)
        self.free = list(range(len(engine.slabs)))
        self.running: dict[int, Running] = {}
        self.ended = 0.0
