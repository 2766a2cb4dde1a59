"""Raw packets as requests bring them: `frame`, and what a capture knows of each besides its bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...bus.columns import Array
from ...netio.dissect import dissect
from ...netio.packets import Packets
from ..batch import Batch
from ..blobs import Blobs

COLUMNS = {"frame": "bin", "time": "i8", "link": "u2", "wire": "u4"}
"""Bytes of the packet; ns since 1970, which nothing here depends on; link type; bytes it had on the wire."""

OPTIONAL = ("time", "link", "wire")
ETHERNET = 1


@dataclass(frozen=True, eq=False)
class Frames:
    """The packets of a batch, on the host.

    Attributes:
        blobs: their bytes.
        link: (n,) uint16, link types; None where all are of `common_link`.
        wire: (n,) uint32, bytes on the wire; None where that is what was captured.
        common_link: a link type.
    """

    blobs: Blobs
    link: Array | None
    wire: Array | None
    common_link: int

    @classmethod
    def of(cls, batch: Batch, common_link: int) -> Frames:
        """The packets of a batch whose columns are some of `COLUMNS`."""
        there = dict(batch.schema)
        return cls(
            batch.packed("frame"),
            batch["link"] if "link" in there else None,
            batch["wire"] if "wire" in there else None,
            common_link,
        )

    def __len__(self) -> int:
        return len(self.blobs)

    def dissected(self) -> Packets:
        """Their headers, read on the host."""
        offsets = self.blobs.offsets
        links = np.full(len(self), self.common_link, np.uint16) if self.link is None else self.link
        return dissect(self.blobs.data, offsets[:-1], np.diff(offsets), links, self.wire)
