"""Stations: an engine as the front uses it, and the batches it has."""

from __future__ import annotations

from dataclasses import dataclass

from .admission import LaneSpec
from .engine import Engine
from .plan import Place, Plan


@dataclass(slots=True)
class Running:
    """A batch an engine has.

    Attributes:
        plan: its rows.
        spec: what they have in common.
        slab: number of the slab they lie in.
        began: offset in it at which the engine writes when it begins.
        started: when it was handed over, monotonic time, s.
    """

    plan: Plan
    spec: LaneSpec
    slab: int
    began: int
    started: float


class Station:
    """An engine as the front uses it.

    Attributes:
        engine: where batches run.
        place: what the planner knows of it.
        free: numbers of the slabs that hold nothing.
        running: what it has, by the batch's number.
    """

    def __init__(self, engine: Engine, first_rows: int) -> None:
        self.engine = engine
        self.place = Place(engine.name, first_rows=first_rows)
        self.free = list(range(len(engine.slabs)))
        self.running: dict[int, Running] = {}

    def since(self, running: Running) -> float:
        """When a batch began, or, while it waits, what it waits for: it is the engine's time that is limited.

        One that waits counts from when the engine last began any, whosever: that which keeps it waiting has run no
        longer. Monotonic time, s.
        """
        began = self.engine.slabs[running.slab].stamped(running.began)
        return began or max(running.started, self.engine.began)
