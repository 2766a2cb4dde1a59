"""The state and history of connections, as Zeek names them, from the letters of their packets.

A packet has at most one letter, and a flow keeps the first of each kind from each end. No later one changes the state,
so that the state of a flow is a walk over its few letters, whatever its packets were.

Source:
    Zeek's documentation of conn.log: `conn_state` and `history` of base/protocols/conn/main.zeek.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from .packet_index import Array

TCP, UDP = 6, 17
FIN, SYN, RST, ACK = 1, 2, 4, 16


class Kind(IntEnum):
    """What a packet is to the state of its connection; each end's packets of a kind are one letter of `LETTERS`."""

    SYN = 0
    SYN_ACK = 1
    ACK = 2
    """It has neither payload nor SYN, FIN or RST."""
    DATA = 3
    FIN = 4
    RST = 5
    FIN_RST = 6
    SYN_FIN = 7
    SYN_RST = 8
    NONE = 9
    """No letter: neither flags nor payload, or a packet of a protocol without states."""


LETTERS = "SHADFRIQQ"
KINDS = len(LETTERS)
CODES = 2 * KINDS
"""A letter's code is twice its kind, and one more where the second end sent it."""
REPEATED = (Kind.SYN, Kind.SYN_ACK, Kind.FIN, Kind.RST)
"""Those that are recorded again where their sequence number is another than that of the last."""


class ConnState(IntEnum):
    """Zeek's names. What is no TCP has `OTH`, but for UDP: `S0` or `SF`, whether it was answered."""

    OTH = 0
    """None of the others: no SYN was seen, say."""
    S0 = 1
    """A SYN, and no answer."""
    S1 = 2
    """Established, and not ended."""
    SF = 3
    """Ended by both ends."""
    REJ = 4
    """The responder answered the SYN with a RST."""
    S2 = 5
    """Established, and ended by the originator alone."""
    S3 = 6
    """Established, and ended by the responder alone."""
    RSTO = 7
    """Established, and reset by the originator."""
    RSTR = 8
    """Reset by the responder."""
    RSTOS0 = 9
    """A SYN, then a RST of the originator, and no SYN-ACK."""
    RSTRH = 10
    """A SYN-ACK, then a RST of the responder, and no SYN."""
    SH = 11
    """A SYN, then a FIN of the originator, and no SYN-ACK."""
    SHR = 12
    """A SYN-ACK, then a FIN of the responder, and no SYN."""


class End(IntEnum):
    """What one end of a connection has done."""

    INACTIVE = 0
    SYN_SENT = 1
    """A SYN and perhaps data, before anything else of the connection was seen."""
    OPENING = 2
    """A SYN and more, but not the other end's."""
    PARTIAL = 3
    """Packets, but no SYN."""
    ESTABLISHED = 4
    CLOSED = 5
    RESET = 6
    RESET_SYN = 7
    """Reset when its SYN was all that had been seen of it."""
    RESET_CLOSED = 8
    """Closed, and reset before the other end closed."""


ENDS = len(End)
WAS_RESET = (End.RESET, End.RESET_SYN, End.RESET_CLOSED)
HAS_SYN = (End.SYN_SENT, End.OPENING)
IS_STRANGE = (End.INACTIVE, End.PARTIAL)


def step(me: End, peer: End, kind: Kind, is_originator: bool) -> tuple[End, End]:
    """Both ends after one of them sent a packet: the sender, and the other."""
    before = me
    if kind in (Kind.SYN, Kind.SYN_ACK, Kind.SYN_FIN, Kind.SYN_RST):
        me, peer = _after_syn(me, peer, kind, is_originator)
    elif kind == Kind.ACK and before == End.SYN_SENT:
        me = End.OPENING
    elif kind in (Kind.ACK, Kind.DATA) and before == End.INACTIVE:
        me = _after_plain(peer, kind, is_originator)
    if kind in (Kind.RST, Kind.FIN_RST, Kind.SYN_RST):
        if before == End.CLOSED:
            me = End.CLOSED if peer == End.CLOSED else End.RESET_CLOSED
        elif before not in WAS_RESET:
            me = End.RESET_SYN if (before, kind) == (End.SYN_SENT, Kind.RST) else End.RESET
    elif kind in (Kind.FIN, Kind.SYN_FIN) and before not in WAS_RESET:
        me = End.CLOSED
        if peer == End.RESET_CLOSED:
            # A FIN, a RST and the other's FIN are a normal end.
            peer = End.CLOSED
    return me, peer


def _after_syn(me: End, peer: End, kind: Kind, is_originator: bool) -> tuple[End, End]:
    if me == End.SYN_SENT and kind == Kind.SYN_ACK:
        return End.OPENING, peer
    if me == End.PARTIAL and peer == End.INACTIVE and kind == Kind.SYN:
        return End.OPENING, peer
    if me != End.INACTIVE:
        return me, peer
    if is_originator:
        return End.SYN_SENT if peer == End.INACTIVE else End.OPENING, peer
    return End.ESTABLISHED, End.ESTABLISHED if peer in HAS_SYN else peer


def _after_plain(peer: End, kind: Kind, is_originator: bool) -> End:
    if peer == End.ESTABLISHED:
        # The SYN-ACK was seen, so the SYN was missed.
        return End.ESTABLISHED
    if kind == Kind.ACK and not is_originator and peer not in IS_STRANGE:
        # Some acknowledge a SYN before they answer it.
        return End.INACTIVE
    return End.PARTIAL


def outcome(originator: End, responder: End, is_empty: bool) -> ConnState:
    """The name of what both ends have done.

    Args:
        originator, responder: the ends.
        is_empty: neither has sent payload.
    """
    strange = originator in IS_STRANGE, responder in IS_STRANGE
    if responder in WAS_RESET:
        if originator in HAS_SYN or (originator in WAS_RESET and is_empty):
            return ConnState.REJ
        return ConnState.RSTRH if strange[0] else ConnState.RSTR
    if originator in WAS_RESET:
        if not strange[1]:
            return ConnState.RSTO
        return ConnState.RSTOS0 if originator == End.RESET_SYN else ConnState.OTH
    if originator == End.CLOSED:
        if responder == End.CLOSED:
            return ConnState.SF
        return ConnState.SH if strange[1] else ConnState.S2
    if responder == End.CLOSED:
        return ConnState.SHR if strange[0] else ConnState.S3
    if originator in HAS_SYN and responder == End.INACTIVE:
        return ConnState.S0
    return ConnState.S1 if (originator, responder) == (End.ESTABLISHED, End.ESTABLISHED) else ConnState.OTH


def kinds(protocol: Array, flags: Array, payload: Array) -> Array:
    """The kind of each packet: (n,) uint8.

    Args:
        protocol: (n,) uint8; 0 for packets without a transport header, as later fragments.
        flags: (n,) uint16, of TCP.
        payload: (n,) uint32, bytes of payload.
    """
    found = _KIND[(flags & 0x17) | (payload > 0).astype(np.uint16) << np.uint16(5)]
    return np.where(protocol == TCP, found, np.where(protocol == UDP, np.uint8(Kind.DATA), np.uint8(Kind.NONE)))


def states(protocol: Array, letters: Array, packets: Array, payload: Array) -> Array:
    """The state of each flow: (n,) uint8, each a `ConnState`.

    Args:
        protocol: (n,) uint8.
        letters: (n, most) uint8, codes of letters plus one, in their order, 0 after the last.
        packets, payload: (n, 2) uint64, packets and bytes of payload by originator and responder.
    """
    walked = np.zeros(len(letters), np.uint8)
    for column in letters.T:
        if not column.any():
            break
        walked = _STEPS[walked, column]
    found = _OUTCOMES[walked, (~payload.any(axis=1)).astype(np.uint8)]
    answered = np.where((packets > 0).all(axis=1), ConnState.SF, ConnState.S0).astype(np.uint8)
    return np.where(protocol == TCP, found, np.where(protocol == UDP, answered, np.uint8(ConnState.OTH)))


def histories(letters: Array, flipped: Array) -> Array:
    """The history of each flow: (n,) str; upper case is the originator's.

    Args:
        letters: as of `states`.
        flipped: (n,) bool, whether the originator is another than the sender of the first packet: `^` says so.
    """
    text = np.zeros((len(letters), letters.shape[1] + 1), np.uint8)
    text[:, 1:] = _TEXT[letters]
    text[:, 0] = ord("^")
    whole, rest = text.view(f"S{text.shape[1]}")[:, 0], text[:, 1:].copy().view(f"S{letters.shape[1]}")[:, 0]
    return np.where(flipped, whole, rest).astype(str)


def _kind_of(flags: int, has_payload: bool) -> Kind:
    fin, syn, rst = bool(flags & FIN), bool(flags & SYN), bool(flags & RST)
    if fin and rst:
        return Kind.FIN_RST
    if syn and fin:
        return Kind.SYN_FIN
    if syn and rst:
        return Kind.SYN_RST
    if syn:
        return Kind.SYN_ACK if flags & ACK else Kind.SYN
    if fin:
        return Kind.FIN
    if rst:
        return Kind.RST
    if has_payload:
        return Kind.DATA
    return Kind.ACK if flags & ACK else Kind.NONE


def _steps() -> Array:
    """The walk as a table: (pairs of ends, 1 + codes) uint8; a pair is nine times the originator plus the responder."""
    table = np.zeros((ENDS * ENDS, 1 + CODES), np.uint8)
    for pair in range(ENDS * ENDS):
        originator, responder = End(pair // ENDS), End(pair % ENDS)
        table[pair, 0] = pair
        for kind in range(KINDS):
            me, peer = step(originator, responder, Kind(kind), True)
            table[pair, 1 + 2 * kind] = me * ENDS + peer
            me, peer = step(responder, originator, Kind(kind), False)
            table[pair, 2 + 2 * kind] = peer * ENDS + me
    return table


_KIND = np.array([_kind_of(index & 0x1F, bool(index & 0x20)) for index in range(64)], np.uint8)
_STEPS = _steps()
_OUTCOMES = np.array(
    [[outcome(End(pair // ENDS), End(pair % ENDS), empty) for empty in (False, True)] for pair in range(ENDS * ENDS)],
    np.uint8,
)
_TEXT = np.frombuffer(b"\0" + "".join(letter + letter.lower() for letter in LETTERS).encode(), np.uint8)
