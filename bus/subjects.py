"""The subject tree, and the partition a key belongs to.

<prefix>.v1.<namespace>.<system>.<operation>[.<partition>]    operations; the queue group is the system's name
<prefix>.v1.<namespace>.agent.<name>.<handler>                agents' handlers; the queue group is agent.<name>
<prefix>.v1.<namespace>.agent.<name>.<handler>.<partition>    likewise, of one with state: only its owner listens
<prefix>.v1.<namespace>.agent.<name>.all.<handler>            the same, asked of every process that has the agent
<prefix>.v1.<namespace>.topic.<as the user names it>          topics
<prefix>.v1.<namespace>.presence                              to every process with agents: who is there?
<prefix>.v1.<namespace>.presence.<process>                    what a process tells of its agents, see `agents.presence`
<prefix>.v1.<namespace>.job|result|dead.<id>…                 durable work; see `jobs`
<prefix>.v1.<namespace>.ctl                                   to every worker: cancelled rows
<prefix>.v1.<namespace>.ctl.<worker>                          to one worker: the chunks of its streams
<prefix>.v1.<namespace>.ctl.<user>.<process>                  likewise, where agents are users of their own
<prefix>.v1.<namespace>.faults                                to every worker: what to do wrong, see `faults`
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

AGENT = "agent"  # the system that handlers belong to

_TOKENS = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")
_PATTERN = re.compile(r"(?:(?:[A-Za-z0-9_\-]+|\*)\.)*(?:[A-Za-z0-9_\-]+|\*|>)")
_RESERVED = ("agent", "topic", "presence", "ctl", "job", "result", "dead", "faults")


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

    @property
    def presence(self) -> str:
        return f"{self.root}.presence"

    def kept(self, kind: str) -> str:
        """Below which the messages lie that streams of a kind keep: not the root, where callers publish."""
        return f"{self.prefix}.{kind}.v1.{self.namespace}"

    def stream(self, kind: str) -> str:
        """The name of the stream, or bucket, of a kind; a stream's name has no dots."""
        return f"{self.prefix}-{self.namespace}-{kind}".replace(".", "-")

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

    def asked(self, name: str) -> str:
        """The subject of whatever can be called: an operation, or a handler, `agent.<name>.<handler>`.

        Raises:
            ValueError: the name is not made of subject tokens, or is neither.
        """
        system, _, rest = name.partition(".")
        if system != AGENT:
            return self.operation(name)
        check_tokens(name, "handler")
        if "." not in rest:
            raise ValueError(f"handler {name!r}: name it {AGENT}.<agent>.<handler>")
        return f"{self.root}.{name}"

    def agent(self, name: str) -> str:
        """The subject above an agent's handlers.

        Raises:
            ValueError: its name is not one subject token.
        """
        _check_token(name, "agent")
        return f"{self.root}.{AGENT}.{name}"

    def topic(self, name: str) -> str:
        """The subject of a topic, `market.nasdaq`, or of those that a pattern names, `market.*` or `market.>`.

        Raises:
            ValueError: the name is not made of subject tokens.
        """
        if _PATTERN.fullmatch(name) is None:
            raise ValueError(
                f"topic {name!r}: use letters, digits, '_' and '-', separated by dots, '*' for a token, a last '>' for "
                "the rest"
            )
        return f"{self.root}.topic.{name}"

    def presence_of(self, process: str) -> str:
        """The subject of what a process tells of its agents.

        Raises:
            ValueError: its name is not one subject token.
        """
        _check_token(process, "process")
        return f"{self.presence}.{process}"

    def worker_control(self, worker: str, user: str = "") -> str:
        """The subject of one worker, or of one process of a user that has agents: no other user may listen there.

        Raises:
            ValueError: a name is not one subject token.
        """
        _check_token(worker, "worker")
        if not user:
            return f"{self.root}.ctl.{worker}"
        _check_token(user, "user")
        return f"{self.root}.ctl.{user}.{worker}"


def queue_group(operation: str) -> str:
    """The queue group of an operation: its system; of a handler: its agent."""
    system, _, rest = operation.partition(".")
    return system if system != AGENT else f"{AGENT}.{rest.partition('.')[0]}"


def check_tokens(name: str, what: str) -> None:
    """Raise ValueError unless `name` is dot-separated tokens of letters, digits, `_` and `-`."""
    if _TOKENS.fullmatch(name) is None:
        raise ValueError(f"{what} {name!r}: use letters, digits, '_' and '-', separated by dots")


def _check_token(name: str, what: str) -> None:
    check_tokens(name, what)
    if "." in name:
        raise ValueError(f"{what} {name!r}: its name cannot have a dot, which parts subjects")


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
