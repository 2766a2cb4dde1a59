"""Named rule sets as files, which outlive the engine process: every engine of a worker reads and writes the same.

A file is a line of JSON, a `RuleInfo`, and the text of the rules. It appears whole, by its renaming.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import time
from typing import NamedTuple

import msgspec

from ...bus.errors import BadParameter, BadValue, Busy, TooLarge
from ...netio.rule_formats import Format, read_rules
from ...netio.rules import BadRules, RuleSet
from ..folder_lock import folder_lock
from ..origin import Seen

MOST_SETS = 1024
MOST_TEXT_BYTES = 64 << 20
MOST_PARTS = 4096
MOST_UPLOADS = 64
UPLOAD_S = 120.0
"""A text of which no further part has come for so long is given up."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SUFFIX = ".rules"


class RuleInfo(msgspec.Struct, frozen=True):
    """What is known of a set besides its rules.

    Attributes:
        name: by which it is called.
        version: 1, and one more each time that other rules are put in its place.
        digest: 32 hexadecimal digits, the same for sets that say the same.
        rules: how many.
        labels: how many different ones.
        format: of its text.
        upload: by which a text that came in parts is known when a part comes again.
    """

    name: str
    version: int
    digest: str
    rules: int
    labels: int
    format: str = ""
    upload: int = 0


class Part(NamedTuple):
    """A part of a text that is too long for one message: whole lines.

    Attributes:
        upload: a number that all parts of a text share, and no other text has; not 0.
        number: of the part, from 0.
        parts: how many there are.
    """

    upload: int
    number: int
    parts: int


class RuleStore:
    """The rule sets of one folder; several threads, and several processes, may share it.

    Args:
        folder: of its own; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def put(self, name: str, text: str, form: Format | None, upload: int = 0) -> RuleInfo:
        """Let a name stand for these rules. Putting what is there already changes nothing.

        Args:
            name: letters, digits, `_` and `-`.
            text: of the rules.
            form: its format; None = as its first rule looks.
            upload: of a text that came in parts.

        Raises:
            BadValue: that is no name.
            BadParameter: some rules are none; the message names their lines. What was there stays.
            TooLarge, Busy: the text is too long, or there are too many sets.
        """
        path = self._path(name)
        if len(text) > MOST_TEXT_BYTES:
            raise _too_large(len(text))
        rules = _read(text, form)
        with folder_lock(self._folder):
            before = self._info(path)
            if before is not None and before.digest == rules.digest and before.upload == upload:
                return before
            if before is None and sum(1 for _ in self._folder.glob(f"*{_SUFFIX}")) >= MOST_SETS:
                raise Busy(f"{MOST_SETS} rule sets are here: delete some", retry_after_s=1.0)
            version = 1 if before is None else before.version + (before.digest != rules.digest)
            info = RuleInfo(name, version, rules.digest, len(rules), len(rules.labels), form or "", upload)
            draft = path.with_name(f"{name}~{secrets.token_hex(8)}")
            draft.write_bytes(msgspec.json.encode(info) + b"\n" + text.encode())
            draft.replace(path)
            return info

    def add(self, name: str, text: str, form: Format | None, part: Part) -> RuleInfo | None:
        """Take a part of a text, in any order; the last one to come puts the whole.

        Returns:
            The set, or None while parts are missing.

        Raises:
            BadValue: there is no such part.
            BadValue, BadParameter, TooLarge, Busy: as `put`.
        """
        path = self._path(name)
        if not (part.upload and part.number < part.parts <= MOST_PARTS):
            raise BadValue(f"part {part.number} of {part.parts}: count from 0, to at most {MOST_PARTS}, in one upload")
        with folder_lock(self._folder):
            there = self._info(path)
            if there is not None and there.upload == part.upload:  # asked again, after an answer that was lost
                return there
            whole = self._gathered(f"{name}~{part.upload:x}-{part.parts}", text, part)
        return None if whole is None else self.put(name, whole, form, part.upload)

    def delete(self, name: str) -> bool:
        """Let a name stand for nothing; whether it stood for something.

        Raises:
            BadValue: that is no name.
        """
        path = self._path(name)
        with folder_lock(self._folder):
            there = path.exists()
            path.unlink(missing_ok=True)
            return there

    def list(self) -> list[RuleInfo]:
        """All sets, by name."""
        found = (self._info(path) for path in sorted(self._folder.glob(f"*{_SUFFIX}")))
        return [info for info in found if info is not None]

    def read(self, name: str) -> tuple[RuleInfo, RuleSet]:
        """A set, whose `version` is that of the name.

        Raises:
            BadValue: that is no name.
            BadParameter: nothing has been put under it.
        """
        try:
            line, _, text = self._path(name).read_bytes().partition(b"\n")
        except FileNotFoundError:
            raise _missing(name) from None
        info = msgspec.json.decode(line, type=RuleInfo)
        rules = read_rules(text.decode(), info.format or None)  # type: ignore[arg-type]
        return info, replace(rules, version=info.version)

    def seen(self, name: str) -> Seen:
        """What tells a set from any that takes its place.

        Raises:
            BadValue, BadParameter: as `read`.
        """
        try:
            found = os.stat(self._path(name))
        except FileNotFoundError:
            raise _missing(name) from None
        return Seen(found.st_ino, found.st_ctime_ns)

    def _gathered(self, upload: str, text: str, part: Part) -> str | None:
        """Keep a part of a text; the whole if it was the last to come."""
        self._tidy()
        folder = self._folder / upload
        if not folder.exists() and sum(1 for _ in self._uploads()) >= MOST_UPLOADS:
            raise Busy(f"{MOST_UPLOADS} texts of rules are on their way: put yours again soon", retry_after_s=1.0)
        folder.mkdir(exist_ok=True)
        (folder / str(part.number)).write_bytes(text.encode())
        sizes = [path.stat().st_size for path in folder.iterdir()]
        if sum(sizes) > MOST_TEXT_BYTES:
            _remove(folder)
            raise _too_large(sum(sizes))
        if len(sizes) < part.parts:
            return None
        whole = b"".join((folder / str(number)).read_bytes() for number in range(part.parts))
        _remove(folder)
        return whole.decode()

    def _tidy(self) -> None:
        """Give up texts of which no part has come for long."""
        for folder in self._uploads():
            if folder.stat().st_mtime + UPLOAD_S < time():
                _remove(folder)

    def _uploads(self) -> Iterator[Path]:
        """Folders of texts of which parts are missing."""
        return self._folder.glob("*~*-*")

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise BadValue(f"{name[:70]!r} is no name of rules: write 1 to 64 letters, digits, '_' and '-'")
        return self._folder / f"{name}{_SUFFIX}"

    def _info(self, path: Path) -> RuleInfo | None:
        with suppress(FileNotFoundError), path.open("rb") as file:
            return msgspec.json.decode(file.readline(), type=RuleInfo)
        return None


def _read(text: str, form: Format | None) -> RuleSet:
    try:
        return read_rules(text, form)
    except BadRules as error:
        raise BadParameter(f"the rules are refused, and nothing was changed:\n{error}") from None


def _missing(name: str) -> BadParameter:
    return BadParameter(f"no rule set {name!r} is here: put it with packets.rules.put, or correct the name")


def _too_large(size: int) -> TooLarge:
    return TooLarge(f"the rules are {size} bytes of text, a set has at most {MOST_TEXT_BYTES}: put them in several")


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
