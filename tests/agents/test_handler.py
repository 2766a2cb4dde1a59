"""What the methods of a class say: messages, replies, kinds; and what is said to whoever writes one wrongly."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

import aikoryu as ai
from aikoryu.agents.agent import kind_of
from aikoryu.agents.handler import Handler
from aikoryu.bus.errors import BadMessage


class Ask(ai.Message):
    text: str


class Token(ai.Message):
    text: str


class Base(ai.Agent):
    @ai.handler
    async def inherited(self) -> int:
        return 1


class Everything(Base):
    @ai.handler(deadline_s=2.0, priority="interactive", idempotent=True)
    async def ask(self, message: Ask, call: ai.Call) -> Token:
        """Answer.

        At length.
        """
        return Token(message.text)

    @ai.handler(priority="background")
    async def swapped(self, other: ai.Call, text: str) -> AsyncIterator[Token]:
        yield Token(text)

    @ai.handler
    async def untyped(self, message, call):  # type: ignore[no-untyped-def]
        return message

    @ai.handler
    async def generator(self, message: list[Ask]) -> AsyncGenerator[int, None]:
        yield len(message)

    @ai.on("market.>", share="desk")
    async def ticks(self, ticks: list[Ask]) -> None: ...

    @ai.on("news")
    async def news(self, news: Ask, call: ai.Call) -> None: ...

    async def unmarked(self, a: int, b: int) -> None: ...


def handlers() -> dict[str, Handler]:
    return kind_of(Everything).handlers


def test_marked_methods_are_handlers_also_inherited_ones() -> None:
    assert set(handlers()) == {"ask", "swapped", "untyped", "generator", "inherited"}


def test_annotations_say_what_comes_and_goes() -> None:
    found = {name: (each.message.type, each.reply.type, each.streams) for name, each in handlers().items()}
    assert found == {
        "ask": (Ask, Token, False),
        "swapped": (str, Token, True),
        "untyped": (Any, Any, False),
        "generator": (list[Ask], int, True),
        "inherited": (Any, int, False),
    }


def test_arguments_come_in_the_order_of_the_parameters() -> None:
    order = {name: each.arguments("message", "call") for name, each in handlers().items()}
    assert order["ask"] == ["message", "call"]
    assert order["swapped"] == ["call", "message"]
    assert order["generator"] == ["message"]
    assert order["inherited"] == []


def test_decorator_says_how_it_is_called() -> None:
    ask, swapped, plain = (handlers()[name] for name in ("ask", "swapped", "inherited"))
    assert (ask.deadline_s, ask.priority, ask.idempotent) == (2.0, 1, True)
    assert (swapped.priority, plain.deadline_s, plain.priority, plain.idempotent) == (-1, None, 0, False)


def test_discovery_is_told_enough_to_call() -> None:
    metadata = kind_of(Everything).metadata["ask"]
    assert json.loads(metadata["request"])["$defs"]["Ask"]["required"] == ["text"]
    assert json.loads(metadata["reply"])["$ref"].endswith("/Token")
    assert (metadata["kind"], metadata["idempotent"], metadata["help"]) == ("unary", "true", "Answer.")
    assert kind_of(Everything).metadata["swapped"]["kind"] == "stream"


def test_topics_are_heard_one_by_one_or_as_lists() -> None:
    topics = {each.topic: each for each in kind_of(Everything).topics}
    assert (topics["market.>"].share, topics["market.>"].batch, topics["market.>"].message.type) == ("desk", True, Ask)
    assert (topics["news"].share, topics["news"].batch, topics["news"].message.type) == (None, False, Ask)
    assert topics["news"].takes == ("message", "call")


def test_class_is_read_once_and_its_subclass_for_itself() -> None:
    assert kind_of(Everything) is kind_of(Everything)
    assert set(kind_of(Base).handlers) == {"inherited"}


class Blocking(ai.Agent):
    @ai.handler
    def ask(self, message: Ask) -> None: ...


class Two(ai.Agent):
    @ai.handler
    async def ask(self, one: Ask, two: Ask) -> None: ...


class Nothing(ai.Agent):
    async def ask(self, message: Ask) -> None: ...


class Unknown(ai.Agent):
    @ai.handler
    async def ask(self, message: Missing) -> None: ...  # type: ignore[name-defined] # noqa: F821


class Odd:
    pass


class NoMessage(ai.Agent):
    @ai.handler
    async def ask(self, message: Odd) -> None: ...


class Silent(ai.Agent):
    @ai.on("news")
    def news(self, message: Ask) -> None: ...


class Unspeakable(ai.Agent):
    @ai.handler
    async def größe(self) -> None: ...


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (Unspeakable, "ASCII"),
        (Blocking, "async def"),
        (Silent, "async def"),
        (Two, "one message"),
        (Nothing, "Nothing is no agent"),
        (Unknown, "Missing is not known"),
        (NoMessage, "Odd.* is no type of messages"),
    ],
)
def test_what_cannot_be_called_is_said_when_the_class_is_read(cls: type, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        kind_of(cls)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan"), float("inf")])
def test_deadline_of_a_handler_can_be_kept(deadline_s: float) -> None:
    async def wait(self: ai.Agent) -> None: ...

    hasty = type("Hasty", (ai.Agent,), {"wait": ai.handler(deadline_s=deadline_s)(wait)})
    with pytest.raises(ValueError, match="deadline_s"):
        kind_of(hasty)


def test_priority_has_a_name() -> None:
    with pytest.raises(ValueError, match="interactive, normal, background"):
        ai.handler(priority="urgent")  # type: ignore[call-overload]


# --- tools -----------------------------------------------------------------------------------------------------------


def add(a: int, b: int = 2) -> int:
    """Add."""
    return a + b


async def shout(message: Ask, call: ai.Call) -> Token:
    assert call is not None
    return Token(message.text.upper())


def test_parameters_of_a_tool_are_its_messages_fields() -> None:
    app = ai.App.in_memory()
    app.tool(add)
    handler = kind_of(add).handlers["call"]
    message = handler.message.decode(b"\x81\xa1a\x01")
    assert (message.a, message.b) == (1, 2)
    with pytest.raises(BadMessage, match=r"at `\$\.b`"):
        handler.message.decode(b"\x82\xa1a\x01\xa1b\xa1x")
    assert handler.metadata["help"] == "Add."
    assert add(1) == 3


def test_tool_of_one_message_takes_it_whole() -> None:
    app = ai.App.in_memory()
    app.tool(name="loud", idempotent=True)(shout)
    handler = kind_of(shout).handlers["call"]
    assert (handler.message.type, handler.reply.type, handler.idempotent) == (Ask, Token, True)
