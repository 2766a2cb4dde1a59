"""An operation of one kernel, for engines that a benchmark starts: rows of 384 floats, doubled."""

from __future__ import annotations

from typing import Any

from aikoryu.gpu.operation import operation

SCALE = 2.0


@operation("bench.scale", inputs={"x": "f4[384]"}, outputs={"y": "f4[384]"})
def scale(x: Any) -> dict[str, Any]:
    """Twice each row."""
    return {"y": x * SCALE}
