"""Rules as text and as tables: what is read, what is refused and how it is said, and sets as values."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.netio.errors import NetError
from aikoryu.netio.packets import NO_VLAN
from aikoryu.netio.rule_formats import Format, detect, read_rules
from aikoryu.netio.rule_text import parse, read, write, written
from aikoryu.netio.rules import ANY_PORT, BadRules, Problem, Rule, RuleSet

TEXT = """
# what may come in
allow tcp from any to 192.168.0.36 port 443          # the web
allow udp from 2001:db8::/32 port 53 to any name dns
drop  tcp from 10.0.0.0/8 port 1024-65535 to any flags S/SA vlan 100
drop  any from any to any
"""


def test_a_text_is_read() -> None:
    rules = read(TEXT)
    assert len(rules) == 4
    assert rules[0] == Rule("allow", 4, 0, 0, 0xC0A80024, 32, ANY_PORT, (443, 443), 6, 0xFF)
    assert rules[1] == Rule("allow", 6, 0x20010DB8 << 96, 32, 0, 0, (53, 53), ANY_PORT, 17, 0xFF, name="dns")
    assert rules[2] == Rule(
        "drop", 4, 10 << 24, 8, 0, 0, (1024, 65535), ANY_PORT, 6, 0xFF, 100, 0xFFFF, tcp_flags=2, tcp_flags_mask=0x12
    )
    assert rules[3] == Rule("drop")
    assert rules.labels == ("allow", "drop")


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("a 6/0xfe from any to any", {"protocol": 6, "protocol_mask": 0xFE}),
        ("a 0x84 from any to any", {"protocol": 132, "protocol_mask": 0xFF}),
        ("a any from any to any vlan none", {"vlan": NO_VLAN, "vlan_mask": 0xFFFF}),
        ("a any from any to any vlan 0/0", {"vlan": 0, "vlan_mask": 0xF000}),
        ("a any to ::/0 from any", {"family": 6}),
        ("a tcp from any port any to any flags any", {"protocol": 6, "protocol_mask": 0xFF}),
        ("a tcp from any to any flags /FR", {"tcp_flags_mask": 0x05, "protocol": 6, "protocol_mask": 0xFF}),
    ],
)
def test_a_line_says(line: str, fields: dict[str, int]) -> None:
    assert parse(line) == Rule("a", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("drop", "'' is no protocol"),
        ("drop tpc from any to any", "'tpc' is no protocol: after the label write any, icmp"),
        ("drop tcp from any", "write both `from` and `to`"),
        ("drop tcp from any to", "nothing follows `to`"),
        ("drop tcp form any to any", "'form' is not known here: write from, to, port"),
        ("drop tcp port 80 from any to any", "`port` stands after the address"),
        ("drop tcp from any to any vlan 1 vlan 2", "`vlan` is said twice"),
        ("drop tcp from 10.0.0.1/8 to any", "10.0.0.1/8 has bits beyond /8: write 10.0.0.0/8"),
        ("drop tcp from 10.0.0/8 to any", "'10.0.0/8' is no address"),
        ("drop tcp from 10.0.0.0/33 to any", "has no length of 0 to 32"),
        ("drop tcp from 2001:db8::1/64 to any", "write 2001:db8::/64"),
        ("drop tcp from 10.0.0.0/8 to ::1", "one address is IPv4, the other IPv6"),
        ("drop tcp from any port 80-79 to any", "'80-79' ends before it begins: write 79-80"),
        ("drop tcp from any port 80,81 to any", "are several ranges: write a rule for each"),
        ("drop tcp from any port 65536 to any", "'65536' is no port: write a number of 0 to 65535"),
        ("drop tcp from any port -1 to any", "'' is no port"),
        ("drop tcp from any port 1_0 to any", "'1_0' is no port"),
        ("drop icmp from any to any port 80", "icmp has no ports: leave `port` out"),
        ("drop udp from any to any flags S/SA", "only TCP has flags: write `tcp` instead of 'udp'"),
        ("drop tcp from any to any flags SA", "write those that must be set, a slash and those looked at"),
        ("drop tcp from any to any flags SF/SA", "'SF/SA' are no flags"),
        ("drop tcp from any to any vlan 4096", "'4096' is no VLAN id: write a number of 0 to 4095"),
        ("drop 7/0xfe from any to any", "'7/0xfe' has bits beyond its mask: write 0x6/0xfe"),
        ("dr(op tcp from any to any", "'dr(op' is not a label"),
    ],
)
def test_a_line_is_refused_with_what_to_write_instead(line: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is looked at
        parse(line)
    assert message in str(caught.value)


def test_the_document_says_what_is_read() -> None:
    document = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    example = document.split("```")[3]
    assert read(example) == read(TEXT)
    for line in re.findall(r"^\| `(?:classbench|dpdk)` \| `(.*?)` \| `(.*?)` \|$", document, re.MULTILINE):
        assert read_rules(line[0])[0].label == line[1]
    for bad in ("a tcp from 10.0.0.1/8 to any", "a icmp from any port 1 to any", "a tcp from any port 80,81 to any"):
        with pytest.raises(ValueError, match=r"write|leave") as caught:
            parse(bad)
        assert f": {caught.value}\n" in document


def test_all_bad_lines_are_named() -> None:
    with pytest.raises(BadRules) as caught:
        read("drop tcp from any to any\n\nnonsense\n# fine\ndrop tcp from 1 to any\n")
    assert [problem.line for problem in caught.value.problems] == [3, 5]
    assert str(caught.value).startswith("line 3: '' is no protocol")
    assert isinstance(caught.value, NetError)
    assert caught.value.code == "bad_rules"


def test_many_bad_lines_are_counted() -> None:
    with pytest.raises(BadRules) as caught:
        read("x\n" * 1000)
    assert len(caught.value.problems) == 1000
    assert str(caught.value).splitlines()[-1] == "and 990 more"


words = st.from_regex(r"[A-Za-z0-9_.:/+-]{1,10}", fullmatch=True)


port_ranges = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(lambda pair: (min(pair), max(pair)))


@st.composite
def any_rule(draw: st.DrawFn) -> Rule:
    family = draw(st.sampled_from([0, 4, 6]))
    bits = {0: 0, 4: 32, 6: 128}[family]
    sides = []
    for _ in range(2):
        length = draw(st.integers(0, bits))
        sides += [draw(st.integers(0, (1 << length) - 1)) << (bits - length), length]
    ports = [draw(port_ranges) for _ in range(2)]
    vlan = draw(st.sampled_from([(0, 0), (NO_VLAN, 0xFFFF), (7, 0xFFFF), (6, 0xF00E)]))
    mask = draw(st.integers(0, 255))
    flags = draw(st.integers(0, 255))
    return Rule(
        draw(words),
        family,
        source=sides[0],
        source_length=sides[1],
        destination=sides[2],
        destination_length=sides[3],
        source_ports=ports[0],
        destination_ports=ports[1],
        protocol=6,
        protocol_mask=0xFF,
        vlan=vlan[0],
        vlan_mask=vlan[1],
        tcp_flags=flags & mask,
        tcp_flags_mask=mask,
        name=draw(st.one_of(st.just(""), words)),
    )


@given(st.lists(any_rule(), max_size=5))
def test_what_is_written_is_read_back(rules: list[Rule]) -> None:
    assert list(read(write(rules))) == rules


@given(st.text(max_size=60), st.sampled_from(["aikoryu", "classbench", "dpdk", None]))
def test_any_text_is_read_or_each_bad_line_named(text: str, form: Format | None) -> None:
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    bad = 0
    try:
        read_rules(text, form)
    except BadRules as error:
        bad = len(error.problems)
    assert 0 <= bad <= sum(map(bool, lines))


def test_both_prefixes_of_no_length_keep_their_version() -> None:
    assert written(parse("a any from 0.0.0.0/0 to any")) == "a any from 0.0.0.0/0 to 0.0.0.0/0"
    assert parse("a any from 0.0.0.0/0 to any").family == 4


CLASSBENCH = "@1.2.3.4/24\t192.168.0.36/32\t0 : 65535\t80 : 80\t0x06/0xFF\t0x1000/0x1000\t\n"
DPDK = "#comment\n@1.2.3.0/24 192.168.0.36/32 0 : 65535 0 : 65535 6/0xfe\nR::/0 ::1/128 0:65535 1:2 0/0 3\n"


def test_classbench_is_read() -> None:
    assert detect(CLASSBENCH) == "classbench"
    (rule,) = read_rules(CLASSBENCH)
    assert rule == Rule("match", 4, 0x01020300, 24, 0xC0A80024, 32, ANY_PORT, (80, 80), 6, 0xFF)


def test_dpdk_is_read() -> None:
    assert detect(DPDK) == "dpdk"
    drop, route = read_rules(DPDK)
    assert drop == Rule("drop", 4, 0x01020300, 24, 0xC0A80024, 32, protocol=6, protocol_mask=0xFE)
    assert route == Rule("port:3", 6, 0, 0, 1, 128, destination_ports=(1, 2))


def test_our_own_text_is_known_by_its_first_rule() -> None:
    assert detect(TEXT) == "aikoryu"
    assert read_rules(TEXT) == read(TEXT)


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        ("@1.2.3.0/24 1.2.3.4/32 0 : 1 0 : 1", "classbench", "it is no ClassBench rule: write @source"),
        ("R1.2.3.0/24 1.2.3.4/32 0 : 1 0 : 1 6/0xff 1", "classbench", "it is no ClassBench rule"),
        ("@1.2.3.0/24 1.2.3.4/32 1 : 0 0 : 1 6/0xff", "dpdk", "the source ports end before they begin"),
        ("@1.2.3.0/24 1.2.3.4/32 0 : 1 0 : 1 6/0xff 7", "dpdk", "follows the protocol of an access rule"),
        ("R1.2.3.0/24 1.2.3.4/32 0 : 1 0 : 1 6/0xff", "dpdk", "ends in the number of the port"),
        ("@1.2.3.0/24 ::1/128 0 : 1 0 : 1 6/0xff", "dpdk", "one address is IPv4, the other IPv6"),
        ("@1.2.3.0/24 1.2.3.4/32 0 : 99999 0 : 1 6/0xff", "dpdk", "'99999' is no port"),
    ],
)
def test_foreign_lines_are_refused(text: str, form: str, message: str) -> None:
    with pytest.raises(BadRules) as caught:
        read_rules(text, form)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_set_never_changes() -> None:
    rules = read(TEXT)
    with pytest.raises(ValueError, match="read-only"):
        rules.protocol[0] = 1
    with pytest.raises(FrozenInstanceError):
        rules.version = 2  # type: ignore[misc]


def test_an_edit_is_the_next_version_and_leaves_the_last() -> None:
    rules = read(TEXT)
    digest = rules.digest
    later = rules.edited(1, 3, [Rule("new")])
    assert (rules.version, later.version) == (1, 2)
    assert [rule.label for rule in later] == ["allow", "new", "drop"]
    assert rules.digest == digest != later.digest
    assert len(rules) == 4


def test_sets_are_equal_by_what_they_say() -> None:
    rules = read(TEXT)
    assert rules.edited(0, 1, [rules[0]]) == rules
    assert len({rules, read(TEXT)}) == 1
    assert rules.edited(0, 1, [rules[0]._replace(name="other")]) != rules
    assert rules.edited(0, 2, [rules[1], rules[0]]) != rules


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(family=5), "rule 2: its family is not 4, 6 or 0"),
        (Rule(family=4, source=1, source_length=31), "rule 2: its source has bits beyond the prefix length"),
        (Rule(family=6, destination=1 << 63, destination_length=64), "its destination has bits beyond"),
        (Rule(family=4, source_length=33), "rule 2: its source is longer than the address"),
        (Rule(source_length=1), "rule 2: its source is longer than the address"),
        (Rule(source_ports=(2, 1)), "rule 2: its source ports end before they begin"),
        (Rule(protocol=1), "rule 2: its protocol has bits beyond the mask"),
        (Rule(protocol=300), "rule 2: a number in it does not fit its field"),
        (Rule(family=6, source=1 << 128, source_length=128), "rule 2: a number in it does not fit"),
        (Rule(vlan=-1), "rule 2: a number in it does not fit"),
    ],
)
def test_rules_made_by_hand_are_looked_at(rule: Rule, message: str) -> None:
    with pytest.raises(BadRules) as caught:
        RuleSet.of([Rule(), rule])
    assert message in str(caught.value)
    assert caught.value.problems[0] == Problem(2, str(caught.value).partition(": ")[2])


def test_rows_are_taken_in_their_order() -> None:
    rules = read(TEXT)
    assert list(rules.take(np.array([3, 1]))) == [rules[3], rules[1]]
