"""Named rule sets that workers classify packets by."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..bus.client import Client
from ..bus.errors import EngineLost, NoWorker
from ..bus.subjects import partition
from ..netio.rule_formats import Format
from ..netio.rule_text import write
from ..netio.rules import RuleSet
from .changes import again_if_lost, rows_of_one

PART_BYTES = 256 * 1024  # of a long text in one row of a frame
MOST_UTF8_BYTES = 4  # of a character


@dataclass(frozen=True)
class RuleInfo:
    """A rule set that a worker keeps.

    Attributes:
        name: by which packets are classified by it.
        version: 1, and one more each time that other rules are put under the name.
        digest: 32 hexadecimal digits, the same for sets that say the same; `netio.rules.RuleSet.digest`.
        rules: how many.
    """

    name: str
    version: int
    digest: str
    rules: int


class Rules:
    """Named rule sets: put once, used by everybody on the bus.

    They outlive the engine process that keeps them, but not the worker. A batch of packets sees one version. Whoever
    may ask may replace or delete them, unless the server's permissions say otherwise.

    Args:
        client: asks the workers.
        partitions: as the settings' `bus.partitions`, the same for everybody on the bus.
    """

    def __init__(self, client: Client, partitions: int) -> None:
        self._client = client
        self._partitions = partitions

    async def put(
        self, name: str, rules: str | Path | RuleSet, *, form: Format | None = None, timeout_s: float | None = None
    ) -> RuleInfo:
        """Let a name stand for these rules, in place of those it stood for. What it stands for already changes nothing.

        Args:
            name: 1 to 64 letters, digits, `_` and `-`.
            rules: the text of the rules, the path of a file that holds it, or a set.
            form: format of the text; by default as its first rule looks.
            timeout_s: how long to wait, s; 100,000 rules take about 5 s.

        Returns:
            The set; it is compiled when this returns.

        Raises:
            BadParameter: some rules are none; the message names their lines. The name stands for what it stood for.
            TooLarge, Busy: the worker keeps no text of this size, or no more sets.
            OSError: the file cannot be read.
        """
        if isinstance(rules, RuleSet):
            text, form = write(rules), None
        else:
            text = await asyncio.to_thread(rules.read_text) if isinstance(rules, Path) else rules
        part_bytes = min(PART_BYTES, self._client.largest_bytes // 2)
        cut = list(_cut(text, part_bytes if text.isascii() else part_bytes // MOST_UTF8_BYTES))
        columns: dict[str, Any] = {"name": [name] * len(cut), "text": cut}
        parameters = {} if form is None else {"format": form}
        if len(cut) > 1:
            columns["upload"] = np.full(len(cut), secrets.randbits(63) | 1, np.uint64)
            columns["part"] = np.arange(len(cut), dtype=np.uint32)
            columns["parts"] = np.full(len(cut), len(cut), np.uint32)

        async def put() -> RuleInfo:
            answer = await rows_of_one(self._client, self.operation("rules.put", name), columns, parameters, timeout_s)
            done = np.flatnonzero(answer["complete"])
            if not len(done):
                raise EngineLost("the worker lost a part of the rules while the rest was on its way: put them again")
            row = int(done[0])
            return RuleInfo(name, int(answer["version"][row]), answer["digest"][row], int(answer["rules"][row]))

        return await again_if_lost(put)

    async def delete(self, name: str, *, timeout_s: float | None = None) -> bool:
        """Let a name stand for nothing; false if it stood for nothing before."""

        async def delete() -> bool:
            operation = self.operation("rules.delete", name)
            answer = await rows_of_one(self._client, operation, {"name": [name]}, {}, timeout_s)
            return bool(answer["deleted"][0])

        return await again_if_lost(delete)

    async def list(self, *, timeout_s: float | None = None) -> list[RuleInfo]:
        """All sets that workers on the bus keep, by name.

        Raises:
            NoWorker: no worker keeps any partition.
        """
        asked = [
            self._client.call(f"packets.rules.list.{number}", {}, timeout_s=timeout_s, idempotent=True)
            for number in range(self._partitions)
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found: dict[str, RuleInfo] = {}
        unserved = 0
        for answer in answers:
            if isinstance(answer, NoWorker):  # nobody keeps this partition
                unserved += 1
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found |= {info.name: info for info in msgspec.json.decode(answer["sets"], type=list[RuleInfo])}
        if unserved == len(answers):
            raise NoWorker("no worker keeps rule sets: start one whose residents.partitions is not `none`")
        return [info for _, info in sorted(found.items())]

    def operation(self, name: str, rules: str) -> str:
        """The operation of this name for a set, as the worker serves it that keeps the set."""
        return f"packets.{name}.{partition(rules, self._partitions)}"


def _cut(text: str, size: int) -> Iterator[str]:
    """The text in parts of whole lines, of at most `size` characters unless a line is longer; one of an empty text."""
    start = 0
    while len(text) - start > size:
        end = text.rfind("\n", start, start + size) + 1 or text.find("\n", start + size) + 1 or len(text)
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]
