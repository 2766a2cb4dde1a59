"""Rules as text, and when they come true."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.bus.errors import BadParameter
from aikoryu.bus.faults import (
    BUS_KINDS,
    DEFAULT_S,
    ENGINE_KINDS,
    TIMED_KINDS,
    Faults,
    Rule,
    bus_rules,
    engine_rules,
    parse,
    to_come,
)

NOW = 1000.0
KINDS = ENGINE_KINDS + BUS_KINDS

thousandths = st.integers(1, 1000).map(lambda number: number / 1000)
times = st.integers(0, 10**6).map(lambda number: number / 100)


def written(number: float) -> str:
    """Without an exponent."""
    return f"{number:.3f}".rstrip("0").rstrip(".")


@given(kind=st.sampled_from(KINDS), seconds=thousandths, rate=thousandths, begin=times, length=thousandths)
def test_rate_is_read_as_it_was_written(kind: str, seconds: float, rate: float, begin: float, length: float) -> None:
    timed = kind in TIMED_KINDS
    head = f"{kind}={written(seconds)}" if timed else kind
    always = parse(f"{head}:{written(rate)}", NOW)
    assert (always.kind, always.rate, always.once) == (kind, rate, False)
    assert (always.begin, always.end) == (NOW, float("inf"))
    assert always.seconds == (seconds if timed else DEFAULT_S)
    end = float(written(begin + length))
    while_ = parse(f"{head}:{written(rate)}@{written(begin)}-{written(end)}", NOW)
    assert while_ == msgspec.structs.replace(always, begin=NOW + begin, end=NOW + end)


@given(kind=st.sampled_from(KINDS), at=times)
def test_time_is_read_as_it_was_written(kind: str, at: float) -> None:
    rule = parse(f"{kind}@{written(at)}", NOW)
    assert (rule.kind, rule.begin, rule.once, rule.rate) == (kind, NOW + at, True, 1.0)


@given(text=st.text() | st.from_regex(r"[a-z]*(=\d*)?(:[\d.]*)?(@[\d.-]*)?", fullmatch=True))
def test_any_text_is_a_rule_or_told_what_is_wrong(text: str) -> None:
    refusal = ""
    try:
        rule = parse(text, NOW)
    except BadParameter as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith(f"fault {text!r}: ")
    else:
        assert 0 < rule.rate <= 1
        assert NOW <= rule.begin < rule.end


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("raise", "write KIND"),
        ("raise:", "write KIND"),
        ("raise:0.1@5", "write KIND"),
        ("raise@5-10", "write KIND"),
        ("raise:-1", "write KIND"),
        ("raise:1e-3", "write KIND"),
        ("raise:0.1 ", "write KIND"),
        ("rise:0.1", "there is no 'rise', use one of raise, memory, .*, disconnect"),
        ("raise=2:0.1", "raise takes no seconds, only slow and delay do"),
        ("slow=0:0.1", "use seconds above 0 and at most 3600"),
        ("slow=3601@1", "use seconds above 0 and at most 3600"),
        ("raise:0", "use a rate above 0 and at most 1"),
        ("raise:1.5", "use a rate above 0 and at most 1"),
        ("raise:1@5-5", "it ends at 5 s, which is not after 5 s"),
        ("raise:1@5-3", "it ends at 3 s, which is not after 5 s"),
    ],
)
def test_what_is_wrong_with_a_rule_is_named(text: str, told: str) -> None:
    with pytest.raises(BadParameter, match=told):
        parse(text, NOW)


def drawn(faults: Faults, now: float) -> str:
    rule = faults.draw(now)
    return rule.kind if rule is not None else ""


def test_rule_holds_from_its_begin_until_before_its_end() -> None:
    faults = Faults([parse("slow=0.2:1@5-10", NOW)])
    assert [drawn(faults, NOW + second) for second in (0, 4.9, 5, 7, 9.9, 10, 99)] == ["", "", *["slow"] * 3, "", ""]


def test_what_happens_once_does_so_the_first_time_after_its_time() -> None:
    faults = Faults([parse("die@3", NOW)])
    assert [drawn(faults, NOW + second) for second in (2.9, 3.5, 3.6, 99)] == ["", "die", "", ""]


def test_one_rule_at_most_happens_at_a_time_the_first_first() -> None:
    faults = Faults([parse(text, NOW) for text in ("raise@1", "die@1", "slow:1")])
    assert [drawn(faults, NOW + 1) for _ in range(4)] == ["raise", "die", "slow", "slow"]


def test_rate_is_how_often_it_happens() -> None:
    faults = Faults([parse("raise:0.25", NOW)], Random(7))
    count = sum(drawn(faults, NOW) == "raise" for _ in range(4000))
    assert 900 < count < 1100
    again = Faults([parse("raise:0.25", NOW)], Random(7))
    assert sum(drawn(again, NOW) == "raise" for _ in range(4000)) == count


def test_kinds_are_for_the_engine_or_for_the_bus() -> None:
    rules = [parse(f"{kind}:1", NOW) for kind in KINDS]
    assert [rule.kind for rule in engine_rules(rules)] == list(ENGINE_KINDS)
    assert [rule.kind for rule in bus_rules(rules)] == list(BUS_KINDS)


def test_part_that_starts_later_knows_nothing_of_what_is_over() -> None:
    rules = [parse(text, NOW) for text in ("die@3", "raise@8", "slow:1@0-4", "hang:1@0-9", "drop:0.5")]
    assert [rule.kind for rule in to_come(rules, NOW + 5)] == ["raise", "hang", "drop"]
    assert to_come(rules, NOW) == rules


def test_rule_goes_from_process_to_process() -> None:
    rule = parse("slow=0.5:1", NOW)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(rule), type=Rule) == rule
