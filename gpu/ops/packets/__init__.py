"""packets: raw packets into columns, rules and back ends. One file an operation; docs/packets.md tells of each."""

from __future__ import annotations

from ...operation import Operation
from ...packets.flow_tables import FlowTables
from ...packets.rule_sets import RuleSets
from .balance import Balance
from .classify import Classify
from .dissect import Dissect
from .flows import Flows
from .label import Label
from .rules import Delete, List, Put

__all__ = ["Balance", "Classify", "Delete", "Dissect", "Flows", "Label", "List", "Put"]


def operations(directory: str) -> list[Operation]:
    """The operations of the network system.

    Args:
        directory: where the worker keeps what outlives an engine; empty for a folder that goes with the process.
    """
    sets = RuleSets(directory)
    rules = [Classify(sets), Put(sets), Delete(sets), List(sets)]
    return [Dissect(), Label(), Balance(), Flows(FlowTables(directory)), *rules]
