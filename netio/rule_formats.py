"""Rule files of others: ClassBench's and DPDK's, told apart by how they look, beside our own.

    @192.0.2.0/24  198.51.100.1/32  0 : 65535  80 : 80  0x06/0xFF  0x0000/0x0000        ClassBench
    @192.0.2.0/24  198.51.100.1/32  0 : 65535  80 : 80  6/0xfe                          DPDK, an access rule: drop
    R0.0.0.0/0     198.51.100.1/32  0 : 65535  0 : 65535  0/0  3                        DPDK, a route: port:3

Source:
    Taylor and Turner, ClassBench, INFOCOM 2005; DPDK, `app/test-acl` and the guide of `l3fwd`, "Rules File".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from . import rule_text
from .rule_text import number, prefix_of, truncated
from .rules import MATCH, Rule, RuleSet

Format: TypeAlias = Literal["aikoryu", "classbench", "dpdk"]

DROP = "drop"
_FIELDS = re.compile(
    r"(?P<kind>[@R])\s*(?P<source>\S+)\s+(?P<destination>\S+)"
    r"\s+(?P<source_low>\w+)\s*:\s*(?P<source_high>\w+)\s+(?P<destination_low>\w+)\s*:\s*(?P<destination_high>\w+)"
    r"\s+(?P<protocol>\w+)\s*/\s*(?P<mask>\w+)(?:\s+(?P<rest>\S.*))?\Z"
)
_FLAGS = re.compile(r"0x[0-9a-fA-F]{1,4}\s*/\s*0x[0-9a-fA-F]{1,4}")
_ROUTE = re.compile(r"\d+\Z")


def read_rules(text: str, form: Format | None = None) -> RuleSet:
    """The rules of a text in any of the formats.

    Args:
        text: lines; empty ones, and what follows a `#`, say nothing.
        form: of the text; without it, the first rule decides.

    Raises:
        BadRules: each bad line is named.
    """
    return RuleSet.of(rule_text.read_lines(text, _PARSERS[form or detect(text)]))


def detect(text: str) -> Format:
    """The format of the first rule in the text."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    first = next(filter(None, lines), "")
    found = _FIELDS.match(first)
    if found is None:
        return "classbench" if first.startswith("@") else "aikoryu"
    if found["kind"] == "R" or found["rest"] is None:
        return "dpdk"
    return "classbench"


def parse_classbench(line: str) -> Rule:
    """A rule of ClassBench, labelled "match". Its flags column is read and, as by DPDK, not matched.

    Raises:
        ValueError: the line is none.
    """
    fields = _FIELDS.match(line)
    if fields is None or fields["kind"] != "@" or (fields["rest"] and not _FLAGS.match(fields["rest"])):
        raise ValueError(
            "it is no ClassBench rule: write @source/length destination/length low : high low : high 0x06/0xFF"
        )
    return _rule(fields, MATCH)


def parse_dpdk(line: str) -> Rule:
    """A rule of DPDK's `l3fwd`: `@` lines are labelled "drop", routes (`R`) "port:" and the number they end in.

    Raises:
        ValueError: the line is none.
    """
    fields = _FIELDS.match(line)
    if fields is None:
        raise ValueError("it is no DPDK rule: write @source/length destination/length low : high low : high 6/0xff")
    if fields["kind"] == "@":
        if fields["rest"]:
            raise ValueError(f"{fields['rest']!r} follows the protocol of an access rule: leave it out")
        return _rule(fields, DROP)
    if not _ROUTE.match(fields["rest"] or ""):
        raise ValueError("a route (R) ends in the number of the port that it forwards to")
    return _rule(fields, f"port:{int(fields['rest'])}")


def _rule(fields: re.Match[str], label: str) -> Rule:
    """The rule of a line's fields; bits beyond a prefix or a mask are cleared, as DPDK clears them.

    Raises:
        ValueError: a field is outside what is allowed.
    """
    versions, prefixes, lengths = zip(*(prefix_of(fields[side]) for side in ("source", "destination")), strict=True)
    if versions[0] != versions[1]:
        raise ValueError("one address is IPv4, the other IPv6: write two of one version")
    ports = {}
    for side in ("source", "destination"):
        ports[side] = (number(fields[f"{side}_low"], 0xFFFF, "port"), number(fields[f"{side}_high"], 0xFFFF, "port"))
        if ports[side][0] > ports[side][1]:
            raise ValueError(f"the {side} ports end before they begin: swap them")
    mask = number(fields["mask"], 0xFF, "mask of a protocol")
    return Rule(
        label=label,
        family=versions[0],
        source=truncated(versions[0], prefixes[0], lengths[0]),
        source_length=lengths[0],
        destination=truncated(versions[0], prefixes[1], lengths[1]),
        destination_length=lengths[1],
        source_ports=ports["source"],
        destination_ports=ports["destination"],
        protocol=number(fields["protocol"], 0xFF, "protocol") & mask,
        protocol_mask=mask,
    )


_PARSERS: Mapping[Format, Callable[[str], Rule]] = {
    "aikoryu": rule_text.parse,
    "classbench": parse_classbench,
    "dpdk": parse_dpdk,
}
