"""What is kept of one key: its state, and what the last calls were answered. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ..bus.errors import BadMessage, Forgotten

MOST_CALLS = 256  # whose answers a key keeps, if their callers have not said that they have them
MOST_BYTES = 64 * 1024  # of those answers
MOST_FORGOTTEN = 64  # clients of which it is known up to which number answers were dropped


class CallNumber(NamedTuple):
    """What tells a call of a key from all others, however often it is sent.

    Attributes:
        client: a number that no other client has.
        number: of the call; later calls of the client have greater ones.
        settled: the client waits for no call of this key with a lesser number.
    """

    client: int
    number: int
    settled: int

    def encode(self) -> bytes:
        """The column `call`."""
        return _encode(self)


class Kept(NamedTuple):
    """A call that was applied, and its reply as it was sent: MessagePack, or JSON text if the call was.

    Attributes:
        client, number: which.
        reply: what it was answered.
        settled: as the call said; the client's calls with lesser numbers are not applied any more.
    """

    client: int
    number: int
    reply: bytes
    settled: int = 0


class Saved(msgspec.Struct, array_like=True, frozen=True):
    """What is written of a key.

    Attributes:
        key: which.
        token: of the owner that wrote it; every later owner's is greater.
        state: as a message; nothing (no bytes) before the first write.
        calls: those applied last, as far as they may be sent again.
        forgotten: by client, the greatest number of its calls that were dropped from `calls` for lack of room.
    """

    key: str
    token: int = 0
    state: bytes = b""
    calls: list[Kept] = []
    forgotten: dict[int, int] = {}

    def reply_to(self, call: CallNumber) -> bytes | None:
        """What the call was answered when it was applied; None if it was not.

        Raises:
            Forgotten: it is not known any more.
        """
        for kept in reversed(self.calls):
            if kept.client == call.client and kept.number == call.number:
                return kept.reply
        if any(kept.client == call.client and call.number < kept.settled for kept in self.calls):
            # A copy that was overtaken by a later call, in a mailbox or on the way: it was applied then, or never.
            raise Forgotten(f"its caller has said that it waits no more for call {call.number} of {self.key!r}")
        if call.number <= self.forgotten.get(call.client, 0):
            raise Forgotten(
                f"too many calls of {self.key!r} came since this one was sent first: whether it was applied is not "
                "known any more, ask for the state"
            )
        return None

    def after(self, state: bytes, token: int, call: CallNumber | None, reply: bytes) -> Saved:
        """What is to be written when a call has been applied."""
        calls = self.calls
        forgotten = self.forgotten
        if call is not None:
            calls = [kept for kept in calls if kept.client != call.client or kept.number >= call.settled]
            calls.append(Kept(call.client, call.number, reply, call.settled))
            size = sum(len(kept.reply) for kept in calls)
            while len(calls) > MOST_CALLS or (size > MOST_BYTES and len(calls) > 1):
                oldest = calls.pop(0)
                size -= len(oldest.reply)
                forgotten = _forget(forgotten, oldest)
        return Saved(self.key, token, state, calls, forgotten)

    def encode(self) -> bytes:
        return _encode(self)


def decode_saved(data: bytes) -> Saved:
    """Raises BadMessage unless these bytes are what was written of a key."""
    try:
        return _saved.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadMessage(f"no state of an agent: {error}") from None


def decode_number(data: bytes) -> CallNumber:
    """Raises BadMessage unless these bytes are a column `call`."""
    try:
        return _number.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadMessage(f"call: {error}") from None


def _forget(forgotten: dict[int, int], kept: Kept) -> dict[int, int]:
    known = {client: number for client, number in forgotten.items() if client != kept.client}
    known[kept.client] = max(kept.number, forgotten.get(kept.client, 0))
    if len(known) > MOST_FORGOTTEN:
        del known[next(iter(known))]
    return known


_encode = msgspec.msgpack.Encoder().encode
_saved = msgspec.msgpack.Decoder(Saved)
_number = msgspec.msgpack.Decoder(CallNumber)
