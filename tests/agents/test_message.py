"""What agents say to one another: types, bytes, text, schemas, and what is told of a wrong message."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import msgpack
import msgspec
import pytest

from aikoryu import Message
from aikoryu.agents.message import LONGEST_SCHEMA, Codec, Record, codec, encode, join
from aikoryu.bus.errors import BadMessage

pydantic = pytest.importorskip("pydantic")


class Tick(Message):
    symbol: str
    price: float = 0.0


@dataclass
class Note:
    text: str
    ticks: list[Tick]


class Model(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    count: int
    name: str = "x"


class Holder(Message):
    model: Model
    size: Annotated[int, msgspec.Meta(ge=1)] = 1


NOTE = Note("a", [Tick("b", 1.5)])


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (Tick, Tick("a", 2.0)),
        (Note, NOTE),
        (Model, Model(count=3)),
        (Holder, Holder(Model(count=3), 2)),
        (list[Tick], [Tick("a")]),
        (dict[str, int], {"a": 1}),
        (str, "é"),
        (bytes, b"\0\xff"),
        (int | None, None),
    ],
)
@pytest.mark.parametrize("text", [False, True])
def test_value_comes_back_as_it_was(type_: Any, value: Any, text: bool) -> None:
    encoded = encode(value, text=text)
    assert isinstance(encoded, str if text else bytes)
    assert Codec(type_).decode(encoded) == value


def test_message_is_plain_msgpack_and_plain_json() -> None:
    binary, text = encode(NOTE), encode(NOTE, text=True)
    assert isinstance(binary, bytes)
    assert msgpack.unpackb(binary) == json.loads(text) == {"text": "a", "ticks": [{"symbol": "b", "price": 1.5}]}


@pytest.mark.parametrize(
    ("type_", "value", "says"),
    [
        (Tick, {"symbol": 1}, r"Expected `str`, got `int` - at `\$\.symbol`"),
        (Tick, {}, "missing required field `symbol`"),
        (Note, {"text": "a", "ticks": [{"symbol": "a"}, {"symbol": None}]}, r"at `\$\.ticks\[1\]\.symbol`"),
        (Holder, {"model": {"count": 1}, "size": 0}, r">= 1`? - at `\$\.size`"),
        (Model, {"count": "many"}, r"valid integer.* - in Model at `count`"),
        (Holder, {"model": {"count": "many"}}, r"at `count` - at `\$\.model`"),
    ],
)
def test_wrong_message_is_told_by_field_and_reason(type_: Any, value: Any, says: str) -> None:
    for text in (False, True):
        with pytest.raises(BadMessage, match=says) as caught:
            Codec(type_).decode(encode(value, text=text))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91" * 5000, b"\xa1\xff", "", "{", "[" * 5000])
def test_garbage_is_a_bad_message(data: bytes | str) -> None:
    for type_ in (Any, Tick, str):
        with pytest.raises(BadMessage):
            Codec(type_).decode(data)


@pytest.mark.parametrize("value", [object(), {1: object()}, "\ud800", 1 << 70])
def test_what_cannot_be_sent_is_told(value: Any) -> None:
    with pytest.raises(BadMessage, match="cannot be sent"):
        encode(value)


def test_unknown_type_has_its_fields_as_attributes() -> None:
    found = codec(Any).decode(encode({"a": {"b": [{"c": 1}]}}))
    assert found == {"a": {"b": [{"c": 1}]}}
    assert found.a.b[0].c == 1
    with pytest.raises(AttributeError, match="no field 'z': it has a"):
        _ = found.z
    with pytest.raises(AttributeError, match="it has none"):
        _ = Record().z
    assert codec(list[Any]).decode(encode([{"a": 1}]))[0].a == 1


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 300])
def test_encoded_values_join_to_an_array(count: int, text: bool) -> None:
    joined = join([encode(number, text=text) for number in range(count)], text=text)
    assert (json.loads if text else msgpack.unpackb)(joined) == list(range(count))


def test_schema_tells_the_fields() -> None:
    schema = json.loads(codec(Note).schema)
    assert set(schema["$defs"]) == {"Note", "Tick"}
    assert json.loads(codec(Holder).schema)["$defs"]["Holder"]["properties"]["model"]["required"] == ["count"]
    assert json.loads(codec(Any).schema) == {}


def test_long_schema_is_left_out() -> None:
    large = msgspec.defstruct("Large", [(f"field_{n}", int) for n in range(400)])
    assert len(Codec(large).schema) < 100 < LONGEST_SCHEMA
    assert "too long" in Codec(large).schema
