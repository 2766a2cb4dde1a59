"""packets.rules.put, packets.rules.delete, packets.rules.list: named rule sets, which packets are classified by.

A call's subject ends in the partition of the set's name, so that all calls about a set reach the worker that has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from ....bus.errors import BusError
from ....netio.rule_formats import Format
from ...batch import Batch
from ...device import Device
from ...operation import Operation
from ...packets.rule_sets import RuleSets
from ...packets.rule_store import Part, RuleInfo
from ...signature import Signature

PART = ("upload", "part", "parts")
"""Columns of a text that comes in parts: a number that all have in common, the part's own, and how many there are."""


class RuleOperation(Operation):
    """An operation on the rule sets of its engine.

    Attributes:
        sets: which all operations of one catalogue share.
    """

    endings = (".*",)

    def __init__(self, sets: RuleSets) -> None:
        self.sets = sets

    def load(self, device: Device) -> None:
        """Find what the engine before has left."""
        self.sets.open(device)

    def relieve(self) -> None:
        """Let go of what is compiled."""
        self.sets.relieve()


class Put(RuleOperation):
    """Lets a name stand for the rules of a text, from the next batch on; each batch sees one version.

    Columns: the name; the text, or a part of it (`upload`, `part` of `parts`), which ends where a line does. The answer
    comes once the set is compiled; it is not `complete` while parts are missing.
    """

    class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """What the rows of a batch have in common.

        Attributes:
            format: of the text; by default as its first rule looks.
        """

        format: Format | None = None

    name = "packets.rules.put"
    signature = Signature(
        {"name": "utf8", "text": "utf8", "upload": "u8", "part": "u4", "parts": "u4"},
        {"complete": "bool", "version": "u4", "rules": "u4", "digest": "utf8"},
        optional=PART,
    )
    parameters = Parameters
    pure = False
    help = "Lets `name` stand for the rules of `text`; docs/rules.md tells the formats."

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Write each row's rules, and compile what is complete."""
        found: list[RuleInfo | None] = [None] * batch.rows
        for row in range(batch.rows):
            if row in batch.errors or not batch.checkpoint(slice(row, row + 1)):
                continue
            try:
                found[row] = self._put(batch, row)
                if found[row] is not None:
                    self.sets.compiled(batch["name"][row])
            except BusError as error:
                batch.reject(row, error.code, str(error))
        return {
            "complete": np.array([info is not None for info in found]),
            "version": np.array([info.version if info else 0 for info in found], np.uint32),
            "rules": np.array([info.rules if info else 0 for info in found], np.uint32),
            "digest": [info.digest if info else "" for info in found],
        }

    def _put(self, batch: Batch, row: int) -> RuleInfo | None:
        name, text, form = batch["name"][row], batch["text"][row], batch.parameters.format
        there = dict(batch.schema)
        if not any(column in there for column in PART):
            return self.sets.store.put(name, text, form)
        part = Part(*(int(batch[column][row]) if column in there else 0 for column in PART))
        return self.sets.store.add(name, text, form, part)


class Delete(RuleOperation):
    """Lets a name stand for nothing; `deleted` is false if it stood for nothing before."""

    name = "packets.rules.delete"
    signature = Signature({"name": "utf8"}, {"deleted": "bool"})
    pure = False

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Delete each row's set."""
        deleted = np.zeros(batch.rows, bool)
        for row, name in enumerate(batch["name"]):
            if row in batch.errors:
                continue
            try:
                deleted[row] = self.sets.store.delete(name)
            except BusError as error:
                batch.reject(row, error.code, str(error))
        return {"deleted": deleted}


class List(RuleOperation):
    """Tells of all rule sets of the worker that keeps the partition: a list in JSON."""

    name = "packets.rules.list"
    signature = Signature({}, {"sets": "utf8"})

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Look at the files."""
        return {"sets": [msgspec.json.encode(self.sets.store.list()).decode()] * batch.rows}
