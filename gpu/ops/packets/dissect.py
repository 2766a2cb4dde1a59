"""packets.dissect: raw packets into columns of their headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from ....bus.columns import Schema
from ...batch import Batch
from ...device import Device
from ...operation import Operation
from ...packets.columns import chosen, column_of, schema_of
from ...packets.frames import COLUMNS, ETHERNET, OPTIONAL, Frames
from ...packets.kernels import DeviceFrames, PacketKernels
from ...signature import Signature

Link = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
"""A link type (https://www.tcpdump.org/linktypes.html)."""


class Dissect(Operation):
    """Reads the headers of packets, the outermost and the innermost; what is wrong with one is its `error`.

    Source: `netio/packets.py` names the columns, docs/packets.md tells what is read.
    """

    class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """What the rows of a batch have in common.

        Attributes:
            columns: what is answered, `error` or `outer.dport`; everything where none is named.
            link: link type of packets that come without the column `link`.
        """

        columns: tuple[str, ...] = ()
        link: Link = ETHERNET

    name = "packets.dissect"
    signature = Signature(COLUMNS, {}, optional=OPTIONAL)
    parameters = Parameters
    help = "Headers of raw packets as `columns`, such as outer.dport; docs/packets.md names them."

    def outputs(self, schema: Schema, parameters: Parameters) -> Schema:
        """The columns asked for."""
        self.signature.check(schema)
        return schema_of(chosen(parameters.columns))

    def load(self, device: Device) -> None:
        """Compile the kernels, where there is a GPU."""
        self._kernels = PacketKernels.on(device)

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Read each packet."""
        parameters: Dissect.Parameters = batch.parameters
        frames, names = Frames.of(batch, parameters.link), chosen(parameters.columns)
        if self._kernels is not None:
            return self._kernels.dissect(DeviceFrames.of(frames, device), names)
        packets = frames.dissected()
        return {name: column_of(packets, name) for name in names}
