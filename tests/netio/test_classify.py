"""Every structure gives the first match that the linear scan gives, and that the data sets expect."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aikoryu.netio.bit_vectors import PAGE, BitVectors
from aikoryu.netio.class_tables import ORDERS, ClassTables
from aikoryu.netio.classify import PREFERRED, Structure, compile_rules
from aikoryu.netio.keys import Keys
from aikoryu.netio.linear import LinearScan
from aikoryu.netio.packets import NO_VLAN, Headers
from aikoryu.netio.prefixes import Searched, TableWalk
from aikoryu.netio.rule_text import read
from aikoryu.netio.rules import Rule, RuleSet
from aikoryu.netio.services import RulesUnfit
from aikoryu.netio.tuple_tables import TupleTables

REPOSITORY = Path(__file__).parents[2]
RULES = Path(os.environ.get("PACKET_TEST_DATA", REPOSITORY.parent / "shared" / "data")) / "packets" / "rules"
SMALL = ("acl1_1k", "fw1_1k", "ipc1_1k", "acl6_1k")
MIDDLE = ("acl1_10k", "fw1_10k", "ipc1_10k", "acl6_10k")
LARGE = ("acl1_100k", "fw1_100k", "ipc1_100k")
STRUCTURES: tuple[type[Structure], ...] = (ClassTables, BitVectors, TupleTables)
WITH_ORACLE: tuple[type[Structure], ...] = (LinearScan, *STRUCTURES)

needs_data = pytest.mark.skipif(
    not RULES.is_dir(), reason=f"no rule sets in {RULES}: set PACKET_TEST_DATA to the folder that holds packets/rules"
)


def load(name: str) -> tuple[RuleSet, Keys, Any]:
    """A rule set, its headers and the expected first matches."""
    data = np.load(RULES / f"{name}.npz")
    count = len(data["proto"])
    is_6 = int(data["version"]) == 6

    def halves(addresses: Any) -> Any:
        return addresses if is_6 else np.stack([np.zeros_like(addresses), addresses], axis=1)

    rules = RuleSet(
        family=np.full(count, 6 if is_6 else 4),
        source=halves(data["src"]),
        source_length=data["src_len"],
        destination=halves(data["dst"]),
        destination_length=data["dst_len"],
        source_port_low=data["sp_lo"],
        source_port_high=data["sp_hi"],
        destination_port_low=data["dp_lo"],
        destination_port_high=data["dp_hi"],
        protocol=data["proto"],
        protocol_mask=data["proto_mask"],
        vlan=np.zeros(count),
        vlan_mask=np.zeros(count),
        tcp_flags=np.zeros(count),
        tcp_flags_mask=np.zeros(count),
        label=np.zeros(count),
    )
    make = Keys.ipv6 if is_6 else Keys.ipv4
    keys = make(data["h_src"], data["h_dst"], data["h_sp"], data["h_dp"], data["h_proto"])
    return rules, keys, data["expected"]


@needs_data
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", SMALL)
def test_every_header_of_small_sets(name: str, structure: type[Structure]) -> None:
    rules, keys, expected = load(name)
    np.testing.assert_array_equal(compile_rules(rules, [structure]).classify(keys), expected)


@needs_data
@pytest.mark.parametrize("structure", [BitVectors, TupleTables])
@pytest.mark.parametrize("name", MIDDLE)
def test_every_header_of_middle_sets(name: str, structure: type[Structure]) -> None:
    rules, keys, expected = load(name)
    np.testing.assert_array_equal(compile_rules(rules, [structure]).classify(keys), expected)


@needs_data
@pytest.mark.parametrize("name", LARGE)
def test_every_header_of_large_sets(name: str) -> None:
    rules, keys, expected = load(name)
    np.testing.assert_array_equal(compile_rules(rules).classify(keys), expected)


@needs_data
def test_tuple_tables_of_a_large_set() -> None:
    rules, keys, expected = load(LARGE[0])
    compiled = compile_rules(rules, [TupleTables])
    np.testing.assert_array_equal(compiled.classify(keys), expected)


@needs_data
@pytest.mark.parametrize(("name", "step"), [*((name, 5) for name in SMALL), *((name, 100) for name in MIDDLE + LARGE)])
def test_the_oracle_itself(name: str, step: int) -> None:
    rules, keys, expected = load(name)
    compiled = compile_rules(rules, [LinearScan])
    np.testing.assert_array_equal(compiled.classify(keys[::step]), expected[::step])


# Few addresses and values, so that rules overlap, nest and repeat; the first and last ones, where sums overflow.
BASES = {
    4: [0, 0x0A000000, 0x0A0000FF, 0x0A00FFFF, 0xFFFFFFFF],
    6: [0, 0x20010DB8 << 96, (0x20010DB8 << 96) + 0xFFFF, (0x20010DB9 << 96) - 1, (1 << 128) - 1, 1 << 64],
}
PORTS = st.sampled_from([0, 1, 53, 80, 81, 1023, 1024, 65534, 65535])
PROTOCOLS = st.sampled_from([0, 1, 6, 7, 17, 255])
VLANS = st.sampled_from([0, 1, 4095, NO_VLAN, 0x2001])
FLAGS = st.sampled_from([0, 0x02, 0x12, 0xFF])


@st.composite
def prefixes(draw: st.DrawFn, version: int) -> tuple[int, int]:
    bits = 32 if version == 4 else 128
    length = draw(st.sampled_from([0, 0, 1, 8, 16, 24, 31, 32] + ([63, 64, 65, 127, 128] if version == 6 else [])))
    return draw(st.sampled_from(BASES[version])) >> (bits - length) << (bits - length), length


@st.composite
def rule_of(draw: st.DrawFn) -> Rule:
    family = draw(st.sampled_from([0, 4, 4, 6]))
    source, destination = (draw(prefixes(family)) if family else (0, 0) for _ in range(2))
    ranges = []
    for _ in range(2):
        ports = sorted((draw(PORTS), draw(PORTS)))
        ranges.append(draw(st.sampled_from([(0, 0xFFFF), (ports[0], ports[1]), (ports[0], ports[0])])))
    masked: list[int] = []
    for values, masks in ((PROTOCOLS, [0, 0xFF, 0xFE]), (VLANS, [0, 0, 0xFFFF, 0xF001]), (FLAGS, [0, 0, 0x12])):
        mask = draw(st.sampled_from(masks))
        masked += [draw(values) & mask, mask]
    return Rule("match", family, *source, *destination, ranges[0], ranges[1], *masked)  # type: ignore[arg-type]


@st.composite
def keys_of(draw: st.DrawFn) -> Keys:
    rows = []
    for _ in range(draw(st.integers(1, 40))):
        version = draw(st.sampled_from([4, 4, 6, 6, 0]))
        near = [base + step for base in BASES[version or 6] for step in (-1, 0, 1)]
        near = [address for address in near if 0 <= address < 1 << (32 if version == 4 else 128)]
        ends = [draw(st.sampled_from(near)) for _ in range(2)]
        halves = [(address >> 64, address & 0xFFFFFFFFFFFFFFFF) for address in ends]
        rows.append((version, *halves, draw(PORTS), draw(PORTS), draw(PROTOCOLS), draw(VLANS), draw(FLAGS)))
    versions, source, destination, *rest = zip(*rows, strict=True)
    columns = [np.array(half, np.uint64) for end in (source, destination) for half in zip(*end, strict=True)]
    dtypes = (np.uint16, np.uint16, np.uint8, np.uint16, np.uint8)
    return Keys(np.array(versions, np.uint8), *columns, *(np.array(c, d) for c, d in zip(rest, dtypes, strict=True)))


def first_by_hand(rules: list[Rule], keys: Keys) -> list[int]:
    """The first match by Python's integers, one rule and one key after another."""
    found = []
    for row in range(len(keys)):
        version = int(keys.version[row])
        source = int(keys.source_high[row]) << 64 | int(keys.source_low[row])
        destination = int(keys.destination_high[row]) << 64 | int(keys.destination_low[row])
        bits = 32 if version == 4 else 128
        found.append(-1)
        for number, rule in enumerate(rules if version else []):
            if (
                rule.family in (0, version)
                and source >> bits - rule.source_length == rule.source >> bits - rule.source_length
                and destination >> bits - rule.destination_length == rule.destination >> bits - rule.destination_length
                and rule.source_ports[0] <= keys.source_port[row] <= rule.source_ports[1]
                and rule.destination_ports[0] <= keys.destination_port[row] <= rule.destination_ports[1]
                and int(keys.protocol[row]) & rule.protocol_mask == rule.protocol
                and int(keys.vlan[row]) & rule.vlan_mask == rule.vlan
                and int(keys.tcp_flags[row]) & rule.tcp_flags_mask == rule.tcp_flags
            ):
                found[-1] = number
                break
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(rule_of(), max_size=90), keys_of())
def test_all_structures_agree_with_each_rule_looked_at(rules: list[Rule], keys: Keys) -> None:
    expected = first_by_hand(rules, keys)
    for structure in WITH_ORACLE:
        assert compile_rules(RuleSet.of(rules), [structure]).classify(keys).tolist() == expected, structure.__name__


def random_rules(count: int, seed: int, version: int = 4) -> tuple[RuleSet, Keys]:
    """Rules over few hosts, the more specific ones first, and keys between two hosts that some rule is about."""
    random = np.random.default_rng(seed)
    bits = 32 if version == 4 else 128
    hosts = [int.from_bytes(random.bytes(bits // 8)) for _ in range(200)]
    pairs = random.integers(200, size=(count, 2))
    lengths = random.choice([0, 8, 12, 17, 24, 30, 32, 32, 32], (count, 2)) * bits // 32
    ports = np.sort(random.integers(200, size=(count, 2)), axis=1)
    order = np.argsort(-lengths.sum(axis=1))
    rules = []
    for (left, right), (n, m), (low, high) in zip(
        pairs[order].tolist(), lengths[order].tolist(), ports[order].tolist(), strict=True
    ):
        prefixes = (hosts[left] >> bits - n << bits - n, n, hosts[right] >> bits - m << bits - m, m)
        protocol, mask = [(0, 0), (6, 255), (17, 255)][int(random.integers(3))]
        rules.append(Rule("match", version, *prefixes, (0, 0xFFFF), (low, high), protocol, mask))
    halves = np.array([(host >> 64, host & 0xFFFFFFFFFFFFFFFF) for host in hosts], np.uint64)
    source, destination = halves[pairs[random.integers(count, size=3000)].T]
    rest = (np.zeros(3000), random.integers(250, size=3000), random.choice([1, 6, 17], 3000))
    if version == 6:
        return RuleSet.of(rules), Keys.ipv6(source, destination, *rest)
    return RuleSet.of(rules), Keys.ipv4(source[:, 1], destination[:, 1], *rest)


@pytest.mark.parametrize("structure", [BitVectors, TupleTables])
@pytest.mark.parametrize("version", [4, 6])
def test_more_rules_than_a_page(version: int, structure: type[Structure]) -> None:
    rules, keys = random_rules(9000, 5, version)
    expected = compile_rules(rules, [LinearScan]).classify(keys)
    assert np.unique(expected).size > 300
    assert expected.max() > PAGE
    np.testing.assert_array_equal(compile_rules(rules, [structure]).classify(keys), expected)


@pytest.mark.parametrize("version", [4, 6])
def test_few_rules_in_class_tables(version: int) -> None:
    rules, keys = random_rules(400, 4, version)
    expected = compile_rules(rules, [LinearScan]).classify(keys)
    np.testing.assert_array_equal(compile_rules(rules, [ClassTables]).classify(keys), expected)


def test_the_order_with_the_smallest_table_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    rules, _ = random_rules(400, 4)
    sizes = []
    for orders in (ORDERS, *([order] for order in ORDERS)):
        monkeypatch.setattr("aikoryu.netio.class_tables.ORDERS", orders)
        tables = compile_rules(rules, [ClassTables]).structures[4]
        assert isinstance(tables, ClassTables)
        sizes.append(tables.matches.size)
    assert len(set(sizes[1:])) == 3
    assert sizes[0] == min(sizes[1:])


def test_more_tuples_than_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aikoryu.netio.tuples.MOST_TABLES", 40)
    rules, keys = random_rules(1500, 6)
    compiled = compile_rules(rules, [TupleTables])
    tables = compiled.structures[4]
    assert isinstance(tables, TupleTables)
    assert len(tables.earliest) == 40
    np.testing.assert_array_equal(compiled.classify(keys), compile_rules(rules, [LinearScan]).classify(keys))


def test_addresses_are_searched_for_where_tables_would_be_large(monkeypatch: pytest.MonkeyPatch) -> None:
    rules, keys = random_rules(300, 7)
    tables = compile_rules(rules, [BitVectors])
    monkeypatch.setattr("aikoryu.netio.prefixes.MOST_ENTRIES", 1000)
    searched = compile_rules(rules, [BitVectors])
    assert isinstance(tables.structures[4].source, TableWalk)  # type: ignore[attr-defined]
    assert isinstance(searched.structures[4].source, Searched)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(searched.classify(keys), tables.classify(keys))


def test_rules_too_diverse_for_tables_fall_to_the_next_structure() -> None:
    rules, keys = random_rules(4000, 8)
    ports = np.random.default_rng(8).integers(1 << 16, size=(4000, 2)).tolist()
    rules = RuleSet.of(
        rule._replace(source_ports=(low, 65535), destination_ports=(0, high))
        for rule, (low, high) in zip(rules, ports, strict=True)
    )
    with pytest.raises(RulesUnfit, match="4000 rules of IPv4"):
        compile_rules(rules, [ClassTables, BitVectors])
    compiled = compile_rules(rules)
    assert isinstance(compiled.structures[4], TupleTables)
    np.testing.assert_array_equal(compiled.classify(keys), compile_rules(rules, [LinearScan]).classify(keys))


def test_rules_that_differ_in_ranges_alone_are_scanned() -> None:
    ranges = np.sort(np.random.default_rng(9).integers(1 << 16, size=(3000, 2, 2)), axis=2).tolist()
    rules = RuleSet.of(Rule(source_ports=(a, b), destination_ports=(c, d)) for (a, b), (c, d) in ranges)
    assert isinstance(compile_rules(rules).structures[4], LinearScan)


def test_no_rules_match_nothing() -> None:
    keys = Keys.ipv4([1, 2], [3, 4], [5, 6], [7, 8], [6, 6])
    assert compile_rules(RuleSet.of([])).classify(keys).tolist() == [-1, -1]


def test_no_keys_have_no_answers() -> None:
    compiled = compile_rules(RuleSet.of([Rule()]))
    assert compiled.classify(Keys.ipv4([], [], [], [], [])).shape == (0,)


def test_small_sets_take_tables() -> None:
    structures = compile_rules(RuleSet.of([Rule()])).structures
    assert {version: type(structure) for version, structure in structures.items()} == {4: PREFERRED[0], 6: PREFERRED[0]}


def test_dissected_packets_have_keys() -> None:
    columns = {field.name: np.zeros(2, np.uint64) for field in fields(Headers)}
    columns |= {"version": np.array([4, 6], np.uint8), "tcp_flags": np.array([0x102, 0x010], np.uint16)}
    columns |= {"src_low": np.array([1, 2], np.uint64), "src_high": np.array([0, 3], np.uint64)}
    columns |= {"protocol": np.array([6, 6], np.uint8)}
    columns |= {"sport": np.array([5, 6], np.uint16), "dport": np.array([80, 80], np.uint16)}
    rules = read(
        "a tcp from ::3:0:0:0:2 to any flags A/A\nb tcp from 0.0.0.1 port 5 to any port 80 vlan 7 flags S/SA\n"
    )
    keys = Keys.of(Headers(**columns), np.array([7, NO_VLAN], np.uint16))
    assert compile_rules(rules).classify(keys).tolist() == [1, 0]


def test_packets_that_are_not_ip_match_nothing() -> None:
    keys = Keys.ipv4([1], [2], [3], [4], [6])
    keys.version[:] = 0
    assert compile_rules(RuleSet.of([Rule()])).classify(keys).tolist() == [-1]
