"""echo: the rows as they came. It measures the bus and the batcher, and answers a first call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...bus.columns import FIXED
from ..batch import Batch
from ..device import Device
from ..operation import Operation
from ..signature import Signature


class Echo(Operation):
    """Gives back the column `x`, of any one shape and fixed-width dtype."""

    name = "echo"
    signature = Signature({"x": "T[...]"}, {"x": "T[...]"}, {"T": "|".join(FIXED)})

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Answer with the column's own memory."""
        return {"x": batch["x"]}
