"""Shapes of load: how many processes, connections and callers ask for how many rows at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

ROW_FLOATS = 384
ROW_BYTES = 4 * ROW_FLOATS
IN_FLIGHT = 512
FRAME_ROWS = (64, 128)  # 96 and 192 KiB of rows: what Aikoryu's clients send in these shapes


@dataclass(frozen=True)
class Shape:
    """A closed loop: every caller waits for its answer before it asks again.

    Attributes:
        name: unique key of the shape in tables and results.
        title: one line for people.
        processes: load processes.
        connections: connections (agents) in each process.
        callers: concurrent callers on each connection.
        rows_per_call: rows in one call; 1 means `call`, more means `call_many`.
        workload: "floats" (random 384-float rows), "keys" or the path of a text pool (`workloads.save_texts`).
        load: how they ask: "callers" in a closed loop, or "hang_up" (they ask and leave, and one probe follows).
        ramp_s: seconds of load before the measured window opens; longer than the slowest answer, so that the window
            sees the steady state and not the wait for the first batch.
    """

    name: str
    title: str
    processes: int = 1
    connections: int = 1
    callers: int = 1
    rows_per_call: int = 1
    workload: str = "floats"
    load: str = "callers"
    ramp_s: float = 0.25

    @property
    def rows_in_flight(self) -> int:
        """Rows asked for and not yet answered, over all processes."""
        return self.processes * self.connections * self.callers * self.rows_per_call

    def as_dict(self) -> dict[str, Any]:
        """The fields, as the load process receives them and the results record them."""
        return asdict(self)


def frame_shape(rows: int) -> Shape:
    """Frames of `rows` rows, as many in flight as make up at least 512 rows (the ceiling is never undersold)."""
    return Shape(f"frames{rows}", f"frames of {rows} rows", callers=-(-IN_FLIGHT // rows), rows_per_call=rows)


BUS_SHAPES = (
    # A ceiling runs next to what it bounds.
    Shape("row512", "512 callers of one row, one client process", callers=IN_FLIGHT),
    frame_shape(64),
    Shape("many512", "4 callers of call_many(128 rows), one client process", callers=4, rows_per_call=128),
    frame_shape(128),
    Shape("row64", "64 callers of one row", callers=64),
    Shape("one", "one caller"),
    Shape(
        "agents512", "512 agents in 4 processes, a connection and one row in flight each", processes=4, connections=128
    ),
)
