"""Calls of agents with state: the rows of a frame, each for a key that this process owns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..bus.columns import unpack
from ..bus.errors import BadColumn, BadParameter, BusError, CallCycle, Cancelled, Expired, Moved, WrongKind
from ..bus.service import Held
from .agent import Resident
from .chain import serving
from .handler import Handler
from .message import Encoded, encode
from .replies import Asked, Replies
from .saved import CallNumber, decode_number
from .state_store import check_key

if TYPE_CHECKING:
    from .tenancy import Tenancy

T = TypeVar("T", str, bytes)


class KeyedCall(Asked):
    """A row that is of a key.

    Attributes:
        key: which.
        number: tells it from all other calls; None if its caller does not say.
        tenancy: by which this process owns the key.
    """

    __slots__ = ("key", "number", "tenancy")

    def __init__(
        self,
        resident: Resident,
        handler: Handler,
        held: Held,
        message: Encoded,
        chain: bytes,
        row: int,
        replies: Replies,
        key: str,
        number: CallNumber | None,
        tenancy: Tenancy,
    ) -> None:
        super().__init__(resident, handler, held, message, chain, row, replies)
        self.key = key
        self.number = number
        self.tenancy = tenancy

    @property
    def hop(self) -> str:
        return f"{super().hop}#{self.key}"

    @property
    def named(self) -> str:
        return f"{super().named}.{self.key}"

    async def work(self, bus: Any) -> None:
        try:
            arguments = self.enter(bus)[1:]
            self._check_chain()

            async def handle(agent: Any) -> bytes:
                reply = encode(await self.handler.function(agent, *arguments), text=self.text)
                return reply if isinstance(reply, bytes) else reply.encode()

            reply = await self.tenancy.apply(self.key, self.number, handle)
        except Exception as error:
            self.refuse(self.failed(error))
        else:
            self.answered = True
            self._replies.add(self, reply.decode() if self.text else reply)
            self.tenancy.ended(self)

    def refuse(self, error: BusError) -> None:
        super().refuse(error)
        self.tenancy.ended(self)

    def give_up(self) -> None:
        """Have its caller ask the next owner."""
        self.left = self.left or Moved
        if self.began:
            assert self.task is not None
            self.task.cancel()
        elif self.task is None and self.resident.mailbox.withdraw(self):
            self.refuse(self.ended_early())

    def ended_early(self) -> BusError:
        if self.left in (None, Cancelled, Expired):
            return super().ended_early()
        return Moved(f"{self.resident.name} {self.key!r} goes to another process: ask again")

    def _check_chain(self) -> None:
        """Raises CallCycle if another handler of this key waits for this one, which would wait for its turn."""
        chain = serving.get()
        assert chain is not None
        for hop in chain.hops[:-1]:
            agent, _, rest = hop.partition(".")
            if agent == self.resident.name and rest.partition("#")[2] == self.key:
                raise CallCycle(
                    f"{self.hop} would wait for {hop}, which waits for it: of a key one call runs at a time"
                )


def keyed_calls(
    resident: Resident, handler: Handler, held: Held, messages: list[Encoded], chains: list[bytes], replies: Replies
) -> list[KeyedCall]:
    """The calls of a frame.

    Raises:
        WrongKind: the frame names no keys.
        BadColumn: a key is none, or the column of keys or of numbers is of the wrong type.
        BadMessage: the number of a call is none.
        Moved: another process owns a key.
    """
    keys = _keys(held, resident, handler)
    told = _column(held, "call", bytes)
    numbers = [None] * len(keys) if told is None else [decode_number(each) for each in told]
    calls = []
    for row, (message, chain, key, number) in enumerate(zip(messages, chains, keys, numbers, strict=True)):
        tenancy = resident.ownership.find(key)
        calls.append(KeyedCall(resident, handler, held, message, chain, row, replies, key, number, tenancy))
    return calls


def _keys(held: Held, resident: Resident, handler: Handler) -> list[str]:
    keys = _column(held, "key", str)
    if keys is None:
        raise WrongKind(
            f"{resident.name}.{handler.name} is of a key: name it, bus.agents.get({resident.name!r}, key=…); on the "
            "wire the column 'key', and its partition at the end of the subject"
        )
    try:
        for key in keys:
            check_key(key)
    except BadParameter as error:
        raise BadColumn(f"column 'key': {error}") from None
    return keys


def _column(held: Held, name: str, type_: type[T]) -> list[T] | None:
    """A column of str or of bytes; None if it is missing.

    Raises:
        BadColumn: it is of another type.
    """
    column = held.request.cols.get(name)
    if column is None:
        return None
    values = unpack(column, held.request.n)
    if column.t != _WIRE[type_] or not isinstance(values, list):
        raise BadColumn(f"column {name!r} is {column.t}: make it {_WIRE[type_]}")
    return cast(list[T], values)


_WIRE: dict[type, str] = {str: "utf8", bytes: "bin"}
