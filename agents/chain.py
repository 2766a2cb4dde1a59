"""What a call inherits from the call that is being answered: the chain of handlers that wait, and the deadline.

Both are the context's of the task that runs a handler, so whatever it asks has them, whichever object it asks through.
"""

from __future__ import annotations

import itertools
import secrets
from contextvars import ContextVar
from typing import NamedTuple

import msgspec

from ..bus.errors import BadMessage, CallCycle
from .message import Encoded

MOST_HOPS = 64


class Chain(NamedTuple):
    """Handlers that wait for one another, from the first that was called on.

    Attributes:
        id: of the call that began it, for whoever watches.
        hops: `<agent>.<handler>`, of an agent with state `<agent>.<handler>#<key>`.
    """

    id: str
    hops: tuple[str, ...] = ()

    def through(self, hop: str) -> Chain:
        """The chain of what a handler asks.

        Raises:
            CallCycle: the handler is in it already, and would wait for itself; or it is too long.
        """
        if hop in self.hops:
            path = " → ".join((*self.hops[self.hops.index(hop) :], hop))
            raise CallCycle(f"{hop} would wait for itself: {path}")
        if len(self.hops) >= MOST_HOPS:
            raise CallCycle(
                f"more than {MOST_HOPS} handlers wait for one another: {' → '.join(self.hops[-3:])} → {hop}"
            )
        return Chain(self.id, (*self.hops, hop))

    def encode(self) -> bytes:
        """The column `chain` of a call."""
        return _encoder.encode(self)


_process = secrets.token_hex(6)
_numbers = itertools.count(1)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Chain)

serving: ContextVar[Chain | None] = ContextVar("aikoryu_chain", default=None)
"""The chain of the handler that runs in this context; None outside of handlers."""


def decode_chain(data: Encoded) -> Chain:
    """The chain of a call.

    Raises:
        BadMessage: these bytes are none.
    """
    if isinstance(data, str):
        raise BadMessage("chain: it is text, and must be MessagePack: a column of bin")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadMessage(f"chain: {error}") from None


def new_chain() -> Chain:
    """The chain of a call that no handler made."""
    return Chain(f"{_process}-{next(_numbers)}")
