"""An entry of a partition's log, and how it is written as a message: its data, the rest in headers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from .errors import BadParameter
from .jetstream import EXPECTED_LAST, Stored

_KIND = "Aikoryu-Kind"
_TOKEN = "Aikoryu-Token"
_PREVIOUS = "Aikoryu-Previous"
_MARK = "Aikoryu-Mark"
_ID = "Aikoryu-Id"


class Kind(StrEnum):
    """What an entry says: a change; that a new owner begins; that a snapshot holds everything before it."""

    CHANGE = "change"
    CLAIM = "claim"
    MARK = "mark"


class Entry(NamedTuple):
    """An entry of a log.

    Attributes:
        sequence: its number; numbers rise, and may leave some out.
        previous: the sequence of the entry before it, 0 for the first.
        token: fencing token of its writer; never less than that of an entry before.
        mark: the sequence of the latest mark before it, 0 if there was none.
        id: made for this entry alone.
        data: a change; of a mark, what its writer calls the snapshot; of a claim, nothing.
    """

    sequence: int
    previous: int
    token: int
    mark: int
    kind: Kind
    id: str
    data: bytes


@dataclass
class Write:
    """An entry that is being appended; `doubtful` when it may be in the log already."""

    kind: Kind
    data: bytes
    previous: int
    token: int
    mark: int
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    doubtful: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """What is sent beside the data; the server keeps it, but only the first is its own business."""
        return {
            EXPECTED_LAST: str(self.previous),
            _PREVIOUS: str(self.previous),
            _KIND: self.kind,
            _TOKEN: str(self.token),
            _MARK: str(self.mark),
            _ID: self.id,
        }


def decode(stored: Stored) -> Entry:
    """The entry that a message of a log is.

    Raises:
        BadParameter: it is none; somebody else writes to the log's subject.
    """
    headers = stored.headers
    try:
        return Entry(
            stored.sequence,
            int(headers[_PREVIOUS]),
            int(headers[_TOKEN]),
            int(headers[_MARK]),
            Kind(headers[_KIND]),
            headers[_ID],
            stored.data,
        )
    except (KeyError, ValueError) as error:
        raise BadParameter(
            f"{stored.subject}: message {stored.sequence} is no entry of a log: whoever wrote it must write elsewhere"
        ) from error
