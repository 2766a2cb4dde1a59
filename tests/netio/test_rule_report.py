"""Rules a set could do without, against every packet of a small world."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aikoryu.netio.classify import compile_rules
from aikoryu.netio.keys import Keys
from aikoryu.netio.linear import LinearScan
from aikoryu.netio.rule_report import report
from aikoryu.netio.rule_text import read
from aikoryu.netio.rules import Rule, RuleSet


def test_a_rule_behind_a_wider_one_is_shadowed() -> None:
    found = report(read("a tcp from 10.0.0.0/8 to any\nb tcp from 10.1.0.0/16 to 10.0.0.1 port 80\n"))
    assert found.shadowed == {1: (0,)}
    assert found.complete


def test_a_rule_of_both_versions_shadows_either() -> None:
    found = report(
        read("a tcp from any to any\nb tcp from ::1 to any\nc tcp from 0.0.0.0/0 to any\nd any from any to any")
    )
    assert found.shadowed == {1: (0,), 2: (0,)}


def test_ranges_that_meet_shadow_together() -> None:
    text = "a udp from any to any port 0-99\na udp from any to any port 90-1000\na udp from any to any port 1001-2000\n"
    assert report(read(text + "b udp from ::1 to any port 50-1500")).shadowed == {3: (0, 1, 2)}
    assert report(read(text + "b udp from ::1 to any port 50-2001")).shadowed == {}
    assert report(read(text.replace("1001", "1002") + "b udp from ::1 to any port 50-1500")).shadowed == {}


def test_a_rule_before_one_that_says_the_same_is_redundant() -> None:
    text = "a tcp from 10.1.0.0/16 to any\n{}\na tcp from 10.0.0.0/8 to any\n"
    assert report(read(text.format("b udp from any to any"))).redundant == {0: 2}
    assert report(read(text.format("b tcp from any to any port 80"))).redundant == {}
    assert report(read(text.format("a tcp from any to any port 80"))).redundant == {0: 2}


def test_a_report_that_gives_up_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aikoryu.netio.rule_report.MOST_PAIRS", 3)
    assert not report(RuleSet.of([Rule()] * 4)).complete


def test_no_rules_have_nothing_to_report() -> None:
    found = report(RuleSet.of([]))
    assert (found.shadowed, found.redundant, found.complete) == ({}, {}, True)


# A world of two address bits, eight ports, four protocols and two flags: every packet of it can be looked at.
PORTS = (0, 1, 2, 3, 4, 65533, 65534, 65535)


@st.composite
def rule_of(draw: st.DrawFn) -> Rule:
    length = draw(st.sampled_from([0, 31, 32]))
    address = draw(st.integers(0, 3)) >> (32 - length) << (32 - length)
    ports = [tuple(sorted((draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))))) for _ in range(2)]
    mask = draw(st.sampled_from([0, 0, 3, 2]))
    return Rule(
        draw(st.sampled_from("ab")),
        draw(st.sampled_from([4, 4, 4, 0])) if not length else 4,
        address,
        length,
        0,
        0,
        draw(st.sampled_from([(0, 65535), ports[0]])),  # type: ignore[arg-type]
        draw(st.sampled_from([(0, 65535), ports[1]])),  # type: ignore[arg-type]
        draw(st.integers(0, 3)) & mask,
        mask,
    )


WORLD = np.array(list(itertools.product([*range(4), 9], PORTS, PORTS, range(5)))).T
KEYS = Keys.ipv4(WORLD[0], np.zeros_like(WORLD[0]), WORLD[1], WORLD[2], WORLD[3])


def covers(by: Rule, rule: Rule) -> bool:
    return (
        by.family in (0, rule.family)
        and by.source_length <= rule.source_length
        and rule.source >> 32 - by.source_length == by.source >> 32 - by.source_length
        and by.source_ports[0] <= rule.source_ports[0] <= rule.source_ports[1] <= by.source_ports[1]
        and by.destination_ports[0] <= rule.destination_ports[0] <= rule.destination_ports[1] <= by.destination_ports[1]
        and by.protocol_mask & ~rule.protocol_mask == 0
        and rule.protocol & by.protocol_mask == by.protocol
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(rule_of(), max_size=14))
def test_what_is_reported_is_so_in_a_small_world(rules: list[Rule]) -> None:
    found = report(RuleSet.of(rules))
    first = compile_rules(RuleSet.of(rules), [LinearScan]).classify(KEYS)
    labels = np.array([*(rule.label for rule in rules), "none"])
    assert not set(found.shadowed) & set(first.tolist())
    for row, by in found.redundant.items():
        assert covers(rules[by], rules[row])
        without = compile_rules(RuleSet.of(rules[:row] + rules[row + 1 :]), [LinearScan]).classify(KEYS)
        without = np.where(without >= row, without + 1, without)
        np.testing.assert_array_equal(labels[without], labels[first])
    kept = np.array(
        [row for row in range(len(rules)) if row not in found.redundant and row not in found.shadowed] + [-1]
    )
    rest = compile_rules(RuleSet.of(rules[row] for row in kept[:-1]), [LinearScan]).classify(KEYS)
    np.testing.assert_array_equal(labels[kept[rest]], labels[first])
    for row, rule in enumerate(rules):
        if any(covers(by, rule) for by in rules[:row]):
            assert row in found.shadowed
