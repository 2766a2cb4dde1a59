"""Agents with state: one of each key, which has one owner on the bus at a time."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, get_args, get_origin

from .agent import STATE, Agent
from .message import codec

S = TypeVar("S")


class Stateful(Agent, Generic[S]):
    """Base of agents that keep a state for each key: `class Counter(Stateful[Count])`.

    An object is made for each call, with the state as the call before it has left it; one call of a key runs at a time.
    What a handler makes of `state` is written before its reply leaves; of one that raises nothing is kept. A call that
    is sent again because its answer may be lost is answered, and not applied twice. What a handler does elsewhere may
    happen twice. Handlers answer once: they are no streams, and hear no topics.

    The state is a message: every field has a default, so that a key which nobody has called yet has one, and so that
    states that were written before a field was added can be read.

    Attributes:
        key: of this agent.
        state: what it keeps.
    """

    key: str
    state: S

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        for base in getattr(cls, "__orig_bases__", ()):
            if get_origin(base) is Stateful and not isinstance(type_ := get_args(base)[0], TypeVar):
                setattr(cls, STATE, codec(type_))
                _check_default(cls, type_)


def _check_default(cls: type, type_: Any) -> None:
    try:
        type_()
    except TypeError as error:
        raise TypeError(
            f"{cls.__qualname__}: {type_!r} cannot be made without arguments ({error}): give each field a default"
        ) from None
