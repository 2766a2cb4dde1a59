"""Where a value comes from: the TOML file, the environment, the command line; and what one key allows."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

ENV_PREFIX = "AIKORYU_"
ENV_FILE = "AIKORYU_CONFIG"
DEFAULT_FILE = "aikoryu.toml"


class ConfigError(Exception):
    """A setting is unknown or not allowed; the message names the key, its source and what to give instead."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key: its type with bounds, its default, and what it means.

    Attributes:
        key: dotted name, `group.field`.
        type: what `msgspec.convert` checks a value against.
        default: value when no source gives one.
        doc: meaning and unit.
        secret: true if the value must never be shown.
    """

    key: str
    type: Any
    default: object
    doc: str
    secret: bool

    @property
    def variable(self) -> str:
        """Name of its environment variable."""
        return ENV_PREFIX + self.key.replace(".", "_").upper()

    @property
    def allowed(self) -> str:
        """What may be given, in words."""
        return _in_words(self.type)

    def check(self, value: object, origin: str, *, text: bool = False) -> object:
        """Return `value` as this key's type.

        Args:
            value: what the source gave.
            origin: the source, for the message ("the variable AIKORYU_NATS_URL").
            text: the source has only text, so a number may be written as digits and a list with commas.

        Raises:
            ConfigError: the type, a bound, a pattern or a choice does not hold.
        """
        written = text and isinstance(value, str)
        given = _split(value) if written and isinstance(self.default, tuple) else value
        try:
            return msgspec.convert(given, self.type, strict=not written)
        except msgspec.ValidationError:
            # Up to an @ stand a user and a password, if the value is an address.
            shown = "(hidden)" if self.secret else re.sub(r".*@", "(hidden)@", repr(value))
        raise ConfigError(f"{self.key} = {shown}, from {origin}, is not allowed: give {self.allowed}")


def from_file(path: Path, table: Mapping[str, Setting]) -> dict[str, object]:
    """Read the `[group]` tables of a TOML file; returns checked values by key."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"the file {path} cannot be read ({error.strerror}): correct its name or rights") from error
    except ValueError as error:
        raise ConfigError(f"the file {path} is not TOML in UTF-8: {error}") from error
    origin = f"the file {path}"
    return {key: _known(key, table, origin).check(value, origin) for key, value in _flat(content, table)}


def from_environ(environ: Mapping[str, str], table: Mapping[str, Setting]) -> dict[str, object]:
    """Read the `AIKORYU_<GROUP>_<KEY>` variables; returns checked values by key."""
    by_variable = {setting.variable: setting for setting in table.values()}
    values: dict[str, object] = {}
    for name in environ:
        if name.startswith(ENV_PREFIX) and name != ENV_FILE:
            setting = _known(name, by_variable, "the environment")
            values[setting.key] = setting.check(environ[name], f"the variable {name}", text=True)
    return values


def from_flags(flags: Mapping[str, object], table: Mapping[str, Setting]) -> dict[str, object]:
    """Read what the command line gave under dotted keys; returns checked values by key."""
    origin = "the command line"
    return {key: _known(key, table, origin).check(value, origin, text=True) for key, value in flags.items()}


def find_file(environ: Mapping[str, str]) -> Path | None:
    """The file that `AIKORYU_CONFIG` names, else `aikoryu.toml` of the working directory if there is one."""
    if named := environ.get(ENV_FILE):
        return Path(named)
    path = Path(DEFAULT_FILE)
    return path if path.is_file() else None


def _split(value: Any) -> list[str]:
    return [item.strip() for item in value.split(",")] if value.strip() else []


def _known(name: str, table: Mapping[str, Setting], origin: str) -> Setting:
    if name in table:
        return table[name]
    (nearest,) = difflib.get_close_matches(name, table, n=1, cutoff=0.0)
    # The value is left out: a misspelt key may hold a password.
    raise ConfigError(f"{name}, from {origin}, is not a setting: the nearest one is {nearest}")


def _flat(content: Mapping[str, object], table: Iterable[str]) -> Iterator[tuple[str, object]]:
    groups = {key.partition(".")[0] for key in table}
    for name, value in content.items():
        if name in groups and isinstance(value, dict):
            for field, inner in value.items():
                yield f"{name}.{field}", inner
        else:
            yield name, value


def _in_words(hint: Any) -> str:
    """Describe a type as `typing.Annotated` and `msgspec.Meta` declare it."""
    metas = [meta for meta in getattr(hint, "__metadata__", ()) if isinstance(meta, msgspec.Meta)]
    plain = get_args(hint)[0] if metas else hint
    if titles := [meta.title for meta in metas if meta.title is not None]:
        return titles[0]
    if get_origin(plain) is Literal:
        return "one of " + ", ".join(get_args(plain))
    if get_origin(plain) is tuple:
        fewest = next((meta.min_length for meta in metas if meta.min_length is not None), 0)
        return f"a list of {fewest} or more, each {_in_words(get_args(plain)[0])}"
    bounds = [
        f"{word} {bound}"
        for meta in metas
        for word, bound in (("above", meta.gt), ("at least", meta.ge), ("at most", meta.le))
        if bound is not None
    ]
    noun = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[plain]
    return " ".join([noun, " and ".join(bounds)]).strip()
