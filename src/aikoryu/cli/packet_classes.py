"""`aikoryu packets classify`: how many packets of a capture fall under each rule."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from ..agents import connect
from ..bus.columns import Array
from ..config import configure_logging
from ..netio.classify import compile_rules
from ..netio.keys import Keys
from .arguments import Commands, add_command, add_settings, settings_of
from .captures import Part, complain_if_cut, opened, parts
from .packet_rules import RuleFile
from .progress import Progress
from .table import table

BATCH_PACKETS = 65536

_DESCRIPTION = """\
Count the packets of a capture by the first rule that each falls under. Rules
are read from a file; with --nats a worker is asked, and RULES is the name of a
set that was put on the bus. Rules count from 0, as in answers of the bus; with
--json each rule is an object.

  aikoryu packets classify trace.pcap --rules edge.rules
  aikoryu packets classify trace.pcap --rules edge.rules --inner
  aikoryu packets classify trace.pcap --rules edge --nats nats://127.0.0.1:4222"""


class Tally:
    """Packets and bytes by rule.

    Attributes:
        packets, size: (rules + 1,) int64, packets and their bytes on the wire by rule + 1; those of no rule first.
        other: packets without IP, which have no rule either.
    """

    def __init__(self) -> None:
        self.packets = np.zeros(1, np.int64)
        self.size = np.zeros(1, np.int64)
        self.other = 0

    def add(self, rule: Array, wire: Array, version: Array) -> None:
        """Count packets of which `rule` says the first that matches, -1 for none."""
        least = len(self.packets)
        packets = np.bincount(rule + 1, minlength=least)
        size = np.bincount(rule + 1, weights=wire, minlength=least).astype(np.int64)
        packets[:least] += self.packets
        size[:least] += self.size
        self.packets, self.size = packets, size
        self.other += int(np.count_nonzero(version == 0))

    def rows(self) -> list[tuple[int, int, int]]:
        """Rule, packets and bytes of each rule that some packet falls under, the most packets first."""
        order = np.argsort(-self.packets, kind="stable")
        return [(int(at) - 1, int(self.packets[at]), int(self.size[at])) for at in order if self.packets[at]]


def add(actions: Commands) -> None:
    """Add the action."""
    parser = add_command(actions, "classify", "packets by the rules they fall under", _DESCRIPTION)
    parser.add_argument("file", type=Path, metavar="FILE", help="a capture")
    parser.add_argument("--rules", required=True, metavar="RULES", help="file of rules, or a name on the bus")
    parser.add_argument("--inner", action="store_true", help="look at the innermost IP header, not at the outermost")
    parser.add_argument("--json", action="store_true", help="an object a rule, one a line")
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Count, and print a line a rule; 1 if the capture is cut."""
    progress = Progress()
    tally = Tally()
    try:
        if options.nats:
            said = uvloop.run(_ask_bus(options, tally, progress))
        else:
            said = _classify_here(options, tally, progress)
    finally:
        progress.close()
    if options.json:
        for rule, packets, size in tally.rows():
            print(json.dumps({"rule": rule, **said.get(rule, {}), "packets": packets, "bytes": size}))
    else:
        print(_table(tally, said))
    return options.status  # type: ignore[no-any-return]


def _classify_here(options: argparse.Namespace, tally: Tally, progress: Progress) -> Mapping[int, dict[str, Any]]:
    """Classify in this process; what is to be said of each rule."""
    file = RuleFile.read(Path(options.rules))
    classifier = compile_rules(file.rules)
    with opened(options.file) as capture:
        for part in parts(capture, BATCH_PACKETS, progress=progress):
            keys = _keys(part, options.inner)
            tally.add(classifier.classify(keys), part.index.wire, keys.version)
        options.status = complain_if_cut(options.file, capture)
    return {
        rule: {"line": file.lines[rule], "label": file.rules[rule].label, "text": file.text(rule)}
        for rule, _, _ in tally.rows()
        if rule >= 0
    }


async def _ask_bus(options: argparse.Namespace, tally: Tally, progress: Progress) -> Mapping[int, dict[str, Any]]:
    """Have a worker classify; what is to be said of each rule."""
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)
    said: dict[int, dict[str, Any]] = {}
    async with connect(settings=settings) as bus:
        with opened(options.file) as capture:
            for part in parts(capture, BATCH_PACKETS, progress=progress):
                keys = _keys(part, options.inner)
                found = await bus.packets.classify(keys, rules=options.rules, labels=True)
                tally.add(found.rule, part.index.wire, keys.version)
                assert found.label is not None, "asked for"
                rules, first = np.unique(found.rule, return_index=True)
                labels = {
                    rule: {"label": found.label[at]} for rule, at in zip(rules.tolist(), first.tolist(), strict=True)
                }
                said |= {rule: label for rule, label in labels.items() if rule >= 0}
            options.status = complain_if_cut(options.file, capture)
    return said


def _keys(part: Part, inner: bool) -> Keys:
    packets = part.packets
    return Keys.of(packets.inner if inner else packets.outer, packets.vlan_outer)


def _table(tally: Tally, said: Mapping[int, Mapping[str, Any]]) -> str:
    total = max(1, int(tally.packets.sum()))
    with_lines = any("line" in each for each in said.values())
    rows = []
    for rule, packets, size in tally.rows():
        about = said.get(rule, {})
        text = about.get("text", about.get("label", "")) if rule >= 0 else _no_rule(tally.other)
        line = [str(about.get("line", ""))] if with_lines else []
        number = str(rule) if rule >= 0 else ""
        rows.append([f"{packets:,}", f"{packets / total:.1%}", f"{size:,}", number, *line, text])
    heading = ["PACKETS", "SHARE", "BYTES", "RULE", *(["LINE", "TEXT"] if with_lines else ["LABEL"])]
    return table([heading, *rows], ">>>>" + ">" * with_lines + "<")


def _no_rule(other: int) -> str:
    return "no rule" + (f" ({other:,} of them not IP)" if other else "")
