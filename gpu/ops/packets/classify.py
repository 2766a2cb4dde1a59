"""packets.classify: the first rule of a named set that each packet falls under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from ....bus.columns import Field, Schema
from ....bus.errors import BadColumn
from ....netio.keys import Keys
from ...batch import Batch
from ...device import Device
from ...packets import key_columns
from ...packets.frames import COLUMNS, ETHERNET, OPTIONAL, Frames
from ...packets.kernels import DeviceFrames, DeviceKeys
from ...packets.rule_sets import Compiled
from ...signature import Signature
from .dissect import Link
from .rules import RuleOperation


class Classify(RuleOperation):
    """Finds for each packet the first rule that matches it, by structures compiled once a version of the rules.

    Packets come raw, in the columns of `packets.dissect`, or as keys: `source`, `destination`, `source_port`,
    `destination_port`, `protocol`, and `version`, `vlan` and `tcp_flags` where they matter.
    """

    class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """What the rows of a batch have in common.

        Attributes:
            rules: name of the set, in whose partition the call's subject ends.
            headers: of raw packets, which of their IP headers is looked at.
            labels: answer the label of each rule too.
            link: link type of raw packets that come without the column `link`.
        """

        rules: str
        headers: Literal["outer", "inner"] = "outer"
        labels: bool = False
        link: Link = ETHERNET

    name = "packets.classify"
    signature = Signature(
        {**COLUMNS, **key_columns.COLUMNS},
        {"rule": "i4", "version": "u4"},
        key_columns.TYPES,
        optional=(*COLUMNS, *key_columns.COLUMNS),
    )
    parameters = Parameters
    help = "The first rule of the set `rules` for each packet, -1 for none; packets raw or as keys."

    def outputs(self, schema: Schema, parameters: Parameters) -> Schema:
        """The rule and the version of the set, and the label if it is asked for."""
        answer = self.signature.bind(schema)
        _check(schema)
        return (*answer, ("label", Field("utf8"))) if parameters.labels else answer

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Classify the rows by the version of the rules that is there now."""
        parameters: Classify.Parameters = batch.parameters
        compiled = self.sets.compiled(parameters.rules)
        rule = self._first(batch, compiled, device)
        answer: dict[str, Any] = {"rule": rule, "version": np.full(batch.rows, compiled.info.version, np.uint32)}
        if parameters.labels:
            there = device.to_host(rule)
            device.synchronize()
            answer["label"] = compiled.labels(there)
        return answer

    def _first(self, batch: Batch, compiled: Compiled, device: Device) -> Any:
        """The first rule that matches each row: (rows,) int32."""
        parameters: Classify.Parameters = batch.parameters
        kernels = self.sets.kernels
        frames = Frames.of(batch, parameters.link) if "frame" in dict(batch.schema) else None
        if kernels is not None and compiled.on_device is not None:
            if frames is None:
                keys = DeviceKeys.of(batch)
            else:
                keys = kernels.keys(DeviceFrames.of(frames, device), parameters.headers)
            return kernels.classify(keys, compiled.on_device)
        if frames is None:
            return compiled.classifier.classify(key_columns.keys_of(batch))
        packets = frames.dissected()
        headers = packets.outer if parameters.headers == "outer" else packets.inner
        return compiled.classifier.classify(Keys.of(headers, packets.vlan_outer))


def _check(schema: Schema) -> None:
    """Raw packets, or keys.

    Raises:
        BadColumn: it is neither, or both.
    """
    names = [name for name, _ in schema]
    of_keys = [name for name in names if name in key_columns.COLUMNS]
    if "frame" in names and not of_keys:
        return
    missing = [name for name in key_columns.REQUIRED if name not in names]
    if missing or len(of_keys) < len(names):
        raise BadColumn(
            f"columns are {', '.join(names) or 'none'}: send raw packets as `frame` (and {', '.join(OPTIONAL)}) "
            f"or keys as {', '.join(key_columns.REQUIRED)} (and {', '.join(key_columns.OPTIONAL)})"
        )
    key_columns.check(schema)
