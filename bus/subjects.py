"""The subject tree, and the partition a key belongs to.

<prefix>.v1.<namespace>.<system>.<operation>[.<partition>]    operations; the queue group is the system's name
<prefix>.v1.<namespace>.agent.<name>.<handler>                agents' handlers
<prefix>.v1.<namespace>.topic.<as the user names it>          topics
<prefix>.v1.<namespace>.job|result|dead.<id>…                 durable work; see `jobs`
<prefix>.v1.<namespace>.ctl                                   to every worker: cancelled rows
<prefix>.v1.<namespace>.ctl.<worker>                          to one worker: the chunks of its streams
<prefix>.v1.<namespace>.faults                                to every worker: what to do wrong, see `faults`
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_TOKENS = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")
_RESERVED = ("agent", "topic", "ctl", "job", "result", "dead", "faults")


@dataclass(frozen=True)
class Subjects:
    """Makes every subject of one bus; names are checked here, so nothing else needs to.

    Attributes:
        prefix: first tokens of all subjects.
        namespace: keeps buses apart that share a server.
    """

    prefix: str = "aikoryu"
    namespace: str = "default"

    def __post_init__(self) -> None:
        check_tokens(self.prefix, "prefix")
        check_tokens(self.namespace, "namespace")

    @property
    def root(self) -> str:
        return f"{self.prefix}.v1.{self.namespace}"

    @property
    def control(self) -> str:
        return f"{self.root}.ctl"

    @property
    def faults(self) -> str:
        return f"{self.root}.faults"

    @lru_cache(maxsize=4096)  # noqa: B019 - a frozen value, one or two in a process
    def operation(self, name: str, partition: int | None = None) -> str:
        """The subject of an operation, `matrix.matmul` or `models.embed.<model>`.

        Raises:
            ValueError: the name is not made of subject tokens, or its system is reserved.
        """
        check_tokens(name, "operation")
        if name.split(".", 1)[0] in _RESERVED:
            raise ValueError(f"operation {name!r}: a system cannot be called {', '.join(_RESERVED)}")
        return f"{self.root}.{name}" if partition is None else f"{self.root}.{name}.{partition}"

    def worker_control(self, worker: str) -> str:
        """The subject of one worker.

        Raises:
            ValueError: its name is not one subject token.
        """
        check_tokens(worker, "worker")
        if "." in worker:
            raise ValueError(f"worker {worker!r}: its name cannot have a dot, which parts subjects")
        return f"{self.root}.ctl.{worker}"


def queue_group(operation: str) -> str:
    """The queue group of an operation: its system."""
    return operation.split(".", 1)[0]


def check_tokens(name: str, what: str) -> None:
    """Raise ValueError unless `name` is dot-separated tokens of letters, digits, `_` and `-`."""
    if _TOKENS.fullmatch(name) is None:
        raise ValueError(f"{what} {name!r}: use letters, digits, '_' and '-', separated by dots")


def endings(partitions: str) -> list[str]:
    """What follows an operation's name in its subjects: those of `all` partitions, of `none`, or of `0-31`."""
    if partitions == "all":
        return [".*"]
    if partitions == "none":
        return []
    first, last = map(int, partitions.split("-"))
    return [f".{number}" for number in range(first, last + 1)]


def partition(key: str | bytes, partitions: int) -> int:
    """The partition of a key: FNV-1a of 32 bits, modulo `partitions`.

    Source: the server's subject mapping `{{partition(P,1)}}` uses the same function.
    """
    digest = 0x811C9DC5
    for byte in key.encode() if isinstance(key, str) else key:
        digest = ((digest ^ byte) * 0x01000193) & 0xFFFFFFFF
    return digest % partitions
