"""Messages: what agents say to one another, as Python's types and as what goes over the wire.

A message is MessagePack, or JSON text for people and for languages without it; an answer comes in kind. Structs of
msgspec and dataclasses are read as they are declared; models of pydantic by pydantic, which is never loaded here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import msgspec

from ..bus.errors import BadColumn, BadMessage

Encoded: TypeAlias = bytes | str
"""A value on the wire: MessagePack is bytes, JSON is text."""

LONGEST_SCHEMA = 4096  # characters of a handler's schema in discovery: a process may have thousands of handlers

# What a decoder raises for what somebody else sent.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_UNSENDABLE = (TypeError, ValueError, OverflowError, RecursionError)


class Message(msgspec.Struct):
    """What a handler takes or answers: declare its fields as those of a dataclass."""


class Record(dict[str, Any]):
    """A map of an agent whose types are not known here; its fields are attributes as well."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the message has no field {name!r}: it has {', '.join(self) or 'none'}") from None


class Codec:
    """Reads values of one type.

    Args:
        type_: what msgspec can read, a model of pydantic, or Any, whose maps become a `Record`.
    """

    def __init__(self, type_: Any) -> None:
        self.type = type_
        self._decoder = msgspec.msgpack.Decoder(type_, dec_hook=_from_builtins)
        self._finish: Callable[[Any], Any] | None = _records if type_ in (Any, list[Any]) else None

    @cached_property
    def _json_decoder(self) -> msgspec.json.Decoder[Any]:
        return msgspec.json.Decoder(self.type, dec_hook=_from_builtins)

    def decode(self, data: Encoded) -> Any:
        """The value.

        Raises:
            BadMessage: these bytes, or this text, are none of the type; the message names the field and the reason.
        """
        try:
            value = self._decoder.decode(data) if isinstance(data, bytes) else self._json_decoder.decode(data)
            return value if self._finish is None else self._finish(value)
        except _UNREADABLE as error:
            raise BadMessage(str(error)) from None

    @property
    def schema(self) -> str:
        """The JSON schema of the type; one that is too long to be told says so."""
        text = msgspec.json.encode(msgspec.json.schema(self.type, schema_hook=_schema)).decode()
        return text if len(text) <= LONGEST_SCHEMA else '{"$comment":"its schema is too long for discovery"}'


@lru_cache(maxsize=4096)
def codec(type_: Any) -> Codec:
    """The codec of a type, made once."""
    return Codec(type_)


def encode(value: Any, *, text: bool = False) -> Encoded:
    """A value as MessagePack, or as JSON text.

    Raises:
        BadMessage: it holds what cannot be sent.
    """
    try:
        return _json_encoder.encode(value).decode() if text else _encoder.encode(value)
    except _UNSENDABLE as error:
        raise BadMessage(f"{type(value).__name__} cannot be sent: {error}") from None


def no_reply() -> BadColumn:
    """The error of an answer that no handler of this SDK gives."""
    return BadColumn("the answer has no column 'reply' of strings: whoever serves the handler must change it")


def join(values: Sequence[Any], *, text: bool = False) -> Any:
    """The array of values that are encoded already, all of them of one kind; 65,535 at the most."""
    if text:
        return f"[{','.join(values)}]"
    size = len(values)
    head = bytes([0x90 | size]) if size < 16 else b"\xdc" + size.to_bytes(2, "big")
    return head + b"".join(values)


def _to_builtins(value: Any) -> Any:
    """What msgspec asks for a value of a type that it does not know."""
    if hasattr(value, "model_dump"):
        return value.model_dump()
    raise TypeError(f"objects of type {type(value).__name__} are no messages: use a struct or a dataclass")


def _from_builtins(type_: Any, value: Any) -> Any:
    """What msgspec asks for a type that it does not know; pydantic's errors become one line."""
    if not hasattr(type_, "model_validate"):
        raise TypeError(f"{type_!r} is no type of messages: use a struct or a dataclass")
    try:
        return type_.model_validate(value)
    except ValueError as error:
        first = error.errors()[0]  # type: ignore[attr-defined]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{first['msg']} - in {type_.__name__} at `{field}`") from None


def _schema(type_: Any) -> Any:
    if hasattr(type_, "model_json_schema"):
        return type_.model_json_schema()
    raise TypeError(f"{type_!r} is no type of messages: use a struct or a dataclass")


def _records(value: Any) -> Any:
    if isinstance(value, dict):
        return Record((key, _records(each)) for key, each in value.items())
    return [_records(each) for each in value] if isinstance(value, list) else value


_encoder = msgspec.msgpack.Encoder(enc_hook=_to_builtins)
_json_encoder = msgspec.json.Encoder(enc_hook=_to_builtins)
