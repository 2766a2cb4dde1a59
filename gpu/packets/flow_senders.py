"""Who sends packets to a table of flows: numbered chunks, each applied once, whose answers can be asked for again."""

from __future__ import annotations

from typing import Any

import msgspec

from ...bus.errors import Forgotten, OutOfStep
from ...netio.flow_wire import FLOW_BYTES, packed, unpacked
from ...netio.flows import Flows

ANSWERS = 8
"""Of each sender, its last ones are kept: it has no more chunks under way."""
LEAST_GIVEN = 1024
"""Flows that an answer may give even if its chunk has fewer packets."""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What a chunk is answered.

    Attributes:
        flows: that ended, in the form of `netio.flow_wire`.
        count: how many.
        left: flows that have ended too, and come with the next chunks.
        open: flows of the table that have not ended.
        ignored: packets so far without an IP header.
    """

    flows: bytes
    count: int
    left: int
    open: int
    ignored: int


class SenderState(msgspec.Struct, frozen=True, array_like=True):
    """A sender as it is written down.

    Attributes:
        number: of the last chunk applied.
        has_ended: whether that was the last of all.
        answers: to the last chunks.
        left: flows that have ended and were in no answer.
    """

    number: int
    has_ended: bool
    answers: list[Answer]
    left: list[bytes]


class FlowSender:
    """One sender.

    Attributes:
        number: of the last chunk applied; 0 before the first.
        has_ended: it said that nothing more would come.
    """

    def __init__(self) -> None:
        self.number = 0
        self.has_ended = False
        self._answers: list[Answer] = []
        self._left: list[Flows] = []

    @classmethod
    def of(cls, state: SenderState) -> FlowSender:
        """The sender that was written down."""
        made = cls()
        made.number, made.has_ended = state.number, state.has_ended
        made._answers, made._left = list(state.answers), [unpacked(blob) for blob in state.left]
        return made

    def state(self) -> SenderState:
        """What is to be written down."""
        return SenderState(self.number, self.has_ended, list(self._answers), [packed(part) for part in self._left])

    @property
    def left(self) -> int:
        """Flows that have ended and were in no answer."""
        return sum(map(len, self._left))

    def kept(self, number: int) -> Answer | None:
        """The answer to a chunk that was applied; None if it is to be applied now.

        Raises:
            OutOfStep: others are to come before it, or it was so long ago that its answer is gone.
            Forgotten: its answer had to make room for those of other senders.
        """
        if number == self.number + 1:
            return None
        back = self.number - number
        if len(self._answers) <= back < min(ANSWERS, self.number):
            raise Forgotten(
                f"chunk {number} was applied, and its answer with the flows that ended made room for those of other "
                "senders since: give these tables of their own"
            )
        if not 0 <= back < len(self._answers):
            raise OutOfStep(f"{self.number + 1} is the chunk expected, {number} came: send again from there")
        return self._answers[-1 - back]

    @property
    def answer_bytes(self) -> int:
        """Of the answers that are kept."""
        return sum(len(answer.flows) for answer in self._answers)

    def drop_answer(self) -> None:
        """Keep the oldest answer no more."""
        del self._answers[0]

    def applied(self, ended: Flows, packets: int, room_bytes: int, **counts: Any) -> Answer:
        """The answer to the chunk that follows.

        Args:
            ended: flows that it ended.
            packets: of the chunk: as many flows its answer may give, or `LEAST_GIVEN` if these are more.
            room_bytes: for flows in the answer; one flow always has room.
            counts: `open` and `ignored` of the answer.
        """
        if len(ended):
            self._left.append(ended)
        given = self._taken(min(max(packets, LEAST_GIVEN), max(1, room_bytes // FLOW_BYTES)))
        answer = Answer(packed(given), len(given), self.left, **counts)
        self.number += 1
        self._answers = [*self._answers, answer][-ANSWERS:]
        return answer

    def _taken(self, most: int) -> Flows:
        """The next flows to give, those that ended first."""
        taken: list[Flows] = []
        while self._left and most:
            part = self._left.pop(0)
            if len(part) > most:
                self._left.insert(0, part[most:])
                part = part[:most]
            taken.append(part)
            most -= len(part)
        return taken[0] if len(taken) == 1 else Flows.joined(taken)
