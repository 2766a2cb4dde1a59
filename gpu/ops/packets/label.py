"""packets.label: which protocol each packet carries, and how that was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from ....bus.columns import Field, Schema
from ....netio.labels import COLUMNS as LOOKED_AT
from ....netio.labels import label, labelled, titles
from ...batch import Batch
from ...device import Device
from ...operation import Operation
from ...packets.frames import COLUMNS, ETHERNET, OPTIONAL, Frames
from ...packets.kernels import DeviceFrames, PacketKernels
from ...signature import Signature
from .dissect import Link


class Label(Operation):
    """Names the protocol of each packet, by the first bytes of its payload, or else by its ports.

    Source: `netio/protocols.py` has the numbers, `netio/signatures.py` the forms that are known.
    """

    class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """What the rows of a batch have in common.

        Attributes:
            headers: which IP header of packets in tunnels says where the payload is.
            names: answer the usual name of each protocol too.
            link: link type of packets that come without the column `link`.
        """

        headers: Literal["outer", "inner"] = "inner"
        names: bool = False
        link: Link = ETHERNET

    name = "packets.label"
    signature = Signature(COLUMNS, {"protocol": "u2", "how": "u1"}, optional=OPTIONAL)
    parameters = Parameters
    help = "The protocol of raw packets, and how it is known: 1 by a port, 2 by first bytes, 3 by the IP header, 0 not."

    def outputs(self, schema: Schema, parameters: Parameters) -> Schema:
        """The number and how it was found, and the name if it is asked for."""
        answer = self.signature.bind(schema)
        return (*answer, ("name", Field("utf8"))) if parameters.names else answer

    def load(self, device: Device) -> None:
        """Compile the kernels, where there is a GPU."""
        self._kernels = PacketKernels.on(device)

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Look at each packet."""
        parameters: Label.Parameters = batch.parameters
        protocol, how = self._found(Frames.of(batch, parameters.link), parameters.headers, device)
        answer = {"protocol": protocol, "how": how}
        if parameters.names:
            there = device.to_host(protocol)
            device.synchronize()
            answer["name"] = titles(there)
        return answer

    def _found(self, frames: Frames, side: str, device: Device) -> tuple[Any, Any]:
        """Protocol and how it was found, on the device where there are kernels, else on the host."""
        if self._kernels is None:
            labels = label(frames.blobs.data, frames.blobs.offsets[:-1], getattr(frames.dissected(), side))
            return labels.protocol, labels.how
        import torch

        there = DeviceFrames.of(frames, device)
        columns = self._kernels.dissect(there, [f"{side}.{name}" for name in LOOKED_AT])
        headers = {name: columns[f"{side}.{name}"] for name in LOOKED_AT}
        return labelled(there.blob, there.offsets[:-1], headers, torch, device.place)
