"""Connection states: what each name means, and that a flow's first letters say what all its packets would."""

from __future__ import annotations

import numpy as np
import pytest

from aikoryu.netio.tcp_state import CODES, LETTERS, ConnState, End, Kind, histories, kinds, outcome, states, step

from .flow_reference import kind_of

EACH = {
    "S": "S0",
    "SSD": "S0",
    "SA": "S0",
    "Sa": "S0",
    "Sh": "S1",
    "ShADad": "S1",
    "Ss": "S1",
    "ShADadFf": "SF",
    "ShADadfF": "SF",
    "ShAFfR": "SF",
    "ShAFrf": "RSTR",
    "ShAFRf": "SF",
    "Ff": "SF",
    "Sr": "REJ",
    "SRr": "REJ",
    "ShADF": "S2",
    "ShADf": "S3",
    "ShADR": "RSTO",
    "ShAFR": "RSTO",
    "DdR": "OTH",
    "ShADr": "RSTR",
    "ShADRdr": "RSTR",
    "SR": "RSTOS0",
    "SDR": "RSTOS0",
    "SADR": "OTH",
    "^hr": "RSTRH",
    "SF": "SH",
    "Q": "SH",
    "^hf": "SHR",
    "^hADd": "S1",
    "Dd": "OTH",
    "AaDd": "OTH",
    "R": "OTH",
    "Dr": "RSTRH",
}
"""Histories and their states; `Q` is a SYN with FIN."""


@pytest.mark.parametrize(("history", "state"), EACH.items())
def test_each_history_has_its_state(history: str, state: str) -> None:
    letters = np.zeros((1, 32), np.uint8)
    text = history.removeprefix("^")
    letters[0, : len(text)] = [2 * LETTERS.index(letter.upper()) + letter.islower() + 1 for letter in text]
    payload = np.array([["D" in text, "d" in text]], np.uint64)
    found = states(np.array([6], np.uint8), letters, np.ones((1, 2), np.uint64), payload)
    assert ConnState(found[0]).name == state
    assert histories(letters, np.array([history != text])).tolist() == [history]


def test_udp_is_told_by_whether_it_was_answered() -> None:
    packets = np.array([[1, 0], [2, 3], [1, 1]], np.uint64)
    found = states(np.array([17, 17, 1], np.uint8), np.zeros((3, 32), np.uint8), packets, packets)
    assert [ConnState(state).name for state in found] == ["S0", "SF", "OTH"]


def test_packets_are_of_the_kind_that_their_flags_say() -> None:
    flags = np.arange(4096, dtype=np.uint16).repeat(2)
    payload = np.tile(np.array([0, 5], np.uint32), 4096)
    found = kinds(np.full(len(flags), 6, np.uint8), flags, payload)
    assert found.tolist() == [kind_of(*pair) for pair in zip(flags.tolist(), payload.tolist(), strict=True)]
    assert kinds(np.array([1, 17], np.uint8), flags[:2], payload[:2]).tolist() == [Kind.NONE, Kind.DATA]


def test_no_later_packet_of_a_kind_changes_the_state() -> None:
    """Over all ways to get anywhere, so that a flow need not keep more than the first letter of each kind and end."""
    after = np.array([[follower(pair, code) for code in range(CODES)] for pair in range(len(End) ** 2)])
    # Pairs of ends and the codes that came, one bit each, by how many codes came.
    reached = np.zeros(1, np.int64)
    ends: set[int] = set()
    while len(reached):
        pair, seen = reached >> CODES, reached & ((1 << CODES) - 1)
        ends |= set(pair.tolist())
        following = []
        for code in range(CODES):
            came = (seen >> code & 1).astype(bool)
            assert (after[pair[came], code] == pair[came]).all(), f"code {code} again"
            # The first SYN is the originator's, the first SYN-ACK the responder's.
            may_come = ~came & ((seen & 0b1111 > 0) | (code not in (1, 2)))
            following.append(after[pair[may_come], code] << CODES | seen[may_come] | 1 << code)
        reached = np.unique(np.concatenate(following))
    names = {outcome(*both(pair), is_empty) for pair in ends for is_empty in (False, True)}
    assert names == set(ConnState)


def follower(pair: int, code: int) -> int:
    """The pair of ends after a packet."""
    originator, responder = both(pair)
    if code % 2:
        responder, originator = step(responder, originator, Kind(code // 2), False)
    else:
        originator, responder = step(originator, responder, Kind(code // 2), True)
    return originator * len(End) + responder


def both(pair: int) -> tuple[End, End]:
    return End(pair // len(End)), End(pair % len(End))
