"""Flows one packet at a time, in plain Python: what the tables are compared with."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from aikoryu.netio.flow_record import MOST_REPEATS
from aikoryu.netio.tcp_state import ConnState, End, Kind, outcome, step

MOST_U4, MOST_U8 = 2**32 - 1, 2**64 - 1
NAMES = {
    Kind.SYN: "s",
    Kind.SYN_ACK: "h",
    Kind.ACK: "a",
    Kind.DATA: "d",
    Kind.FIN: "f",
    Kind.RST: "r",
    Kind.FIN_RST: "i",
    Kind.SYN_FIN: "q",
    Kind.SYN_RST: "q",
}


def kind_of(flags: int, payload: int) -> Kind:
    fin, syn, rst, ack = (bool(flags & bit) for bit in (1, 2, 4, 16))
    if syn + fin + rst > 1:
        return Kind.FIN_RST if fin and rst else Kind.SYN_FIN if fin else Kind.SYN_RST
    if syn:
        return Kind.SYN_ACK if ack else Kind.SYN
    if fin or rst:
        return Kind.FIN if fin else Kind.RST
    return Kind.DATA if payload else Kind.ACK if ack else Kind.NONE


@dataclass
class WholeFlow:
    """The state of one connection, all of whose packets take their step, and its history."""

    first_sender: Hashable
    packets: list[tuple[Hashable, Kind]] = field(default_factory=list)
    letters: list[tuple[Hashable, Kind]] = field(default_factory=list)
    last: dict[tuple[Hashable, Kind], int] = field(default_factory=dict)
    repeats: int = 0
    payload: int = 0
    is_flipped: bool = False
    """Whether the first SYN or SYN-ACK says that the first packet was the responder's."""

    def add(self, sender: Hashable, flags: int, seq: int, payload: int) -> None:
        kind = kind_of(flags, payload)
        self.payload += payload
        if kind == Kind.NONE:
            return
        self.packets.append((sender, kind))
        opens = kind in (Kind.SYN, Kind.SYN_ACK)
        if opens and not any(letter in (Kind.SYN, Kind.SYN_ACK) for _, letter in self.letters):
            self.is_flipped = (sender == self.first_sender) == (kind == Kind.SYN_ACK)
        is_new = (sender, kind) not in self.last
        if is_new:
            self.letters.append((sender, kind))
        elif NAMES[kind] in "shfr" and self.last[sender, kind] != seq and self.repeats < MOST_REPEATS:
            self.repeats += 1
            self.letters.append((sender, kind))
        self.last[sender, kind] = seq

    @property
    def state(self) -> ConnState:
        originator, responder = End.INACTIVE, End.INACTIVE
        for sender, kind in self.packets:
            if self.is_originator(sender):
                originator, responder = step(originator, responder, kind, True)
            else:
                responder, originator = step(responder, originator, kind, False)
        return outcome(originator, responder, not self.payload)

    @property
    def history(self) -> str:
        said = (NAMES[kind].upper() if self.is_originator(sender) else NAMES[kind] for sender, kind in self.letters)
        return "^" * self.is_flipped + "".join(said)

    def is_originator(self, sender: Hashable) -> bool:
        return (sender == self.first_sender) != self.is_flipped
