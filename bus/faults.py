"""Faults: what a part is asked to do wrong, when and how often. Pure: time and chance are arguments.

A rule is text, with times in seconds after it came:

    KIND[=SECONDS]:RATE[@FROM-TO]   raise:0.01       each time with that probability
                                    slow=0.2:1@5-10  every time from second 5 to second 10, 0.2 s longer
    KIND[=SECONDS]@TIME             die@3            the first time after second 3, once
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from random import Random
from typing import Literal, get_args

import msgspec

from .errors import BadParameter

EngineKind = Literal["raise", "memory", "wrong", "slow", "hang", "poison", "die"]
BusKind = Literal["drop", "delay", "duplicate", "reorder", "disconnect"]
Kind = EngineKind | BusKind

ENGINE_KINDS: tuple[str, ...] = get_args(EngineKind)
BUS_KINDS: tuple[str, ...] = get_args(BusKind)
TIMED_KINDS = ("slow", "delay")
DEFAULT_S = 0.05
LONGEST_S = 3600.0

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_FORM = re.compile(rf"([a-z]+)(?:=({_NUMBER}))?(?::({_NUMBER})(?:@({_NUMBER})-({_NUMBER}))?|@({_NUMBER}))")


class Rule(msgspec.Struct, frozen=True):
    """What shall go wrong, and when.

    Attributes:
        kind: what.
        seconds: how long, for the kinds that take time; s.
        rate: probability that it happens, each time it could.
        begin, end: on `time.monotonic`, which is one clock for all processes of a host; it is over at `end`.
        once: it happens a single time, the first after `begin`.
    """

    kind: Kind
    seconds: float
    rate: float
    begin: float
    end: float
    once: bool


class Faults:
    """Rules in force, and which of them have had their turn.

    Args:
        rules: in the order in which they are asked; one at most happens at a time.
        random: decides about rates.
    """

    def __init__(self, rules: Sequence[Rule] = (), random: Random | None = None) -> None:
        self._rules = tuple(rules)
        self._random = random or Random()
        self._spent: set[int] = set()

    def draw(self, now: float) -> Rule | None:
        """What goes wrong this time, if anything does.

        Args:
            now: on the rules' clock.
        """
        for number, rule in enumerate(self._rules):
            if rule.once:
                if now >= rule.begin and number not in self._spent:
                    self._spent.add(number)
                    return rule
            elif rule.begin <= now < rule.end and self._random.random() < rule.rate:
                return rule
        return None


def parse(text: str, now: float) -> Rule:
    """Read a rule that came at `now`.

    Raises:
        BadParameter: it is none; the message says what is wrong with it.
    """
    form = _FORM.fullmatch(text)
    if form is None:
        raise BadParameter(f"fault {text!r}: write KIND[=SECONDS]:RATE[@FROM-TO] or KIND[=SECONDS]@TIME")
    kind, seconds, rate, begin, end, at = form.groups()
    if kind not in ENGINE_KINDS + BUS_KINDS:
        raise BadParameter(f"fault {text!r}: there is no {kind!r}, use one of {', '.join(ENGINE_KINDS + BUS_KINDS)}")
    if seconds is not None and kind not in TIMED_KINDS:
        raise BadParameter(f"fault {text!r}: {kind} takes no seconds, only {' and '.join(TIMED_KINDS)} do")
    if seconds is not None and not 0 < float(seconds) <= LONGEST_S:
        raise BadParameter(f"fault {text!r}: use seconds above 0 and at most {LONGEST_S:.0f}")
    if rate is not None and not 0 < float(rate) <= 1:
        raise BadParameter(f"fault {text!r}: use a rate above 0 and at most 1")
    if begin is not None and not float(begin) < float(end):
        raise BadParameter(f"fault {text!r}: it ends at {end} s, which is not after {begin} s")
    return Rule(
        kind=kind,  # type: ignore[arg-type]  # it was looked up
        seconds=float(seconds or DEFAULT_S),
        rate=float(rate or 1),
        begin=now + float(begin or at or 0),
        end=now + float(end) if end else float("inf"),
        once=at is not None,
    )


def engine_rules(rules: Iterable[Rule]) -> list[Rule]:
    """Those about batches, which an engine acts on."""
    return [rule for rule in rules if rule.kind in ENGINE_KINDS]


def bus_rules(rules: Iterable[Rule]) -> list[Rule]:
    """Those about messages, which a `FaultyTransport` acts on."""
    return [rule for rule in rules if rule.kind in BUS_KINDS]


def to_come(rules: Iterable[Rule], now: float) -> list[Rule]:
    """What a part that starts at `now` has to know: not what is over, nor what happens once and has had its time.

    A process that died of a rule would otherwise be followed by one that dies of it as well.
    """
    return [rule for rule in rules if (rule.begin if rule.once else rule.end) > now]
