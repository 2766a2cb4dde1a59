"""A bus in memory on which things go wrong as a test says."""

from __future__ import annotations

from collections import Counter
from random import Random
from time import monotonic

from ..bus.errors import BadParameter
from ..bus.faults import BUS_KINDS, Faults, parse
from ..bus.faulty import FaultyTransport
from ..bus.memory import MemoryBus


class Network:
    """A bus in memory that the apps of a test share.

    Each message passes twice where something can go wrong with it, when it is sent and when it is received.

    Args:
        rules: what goes wrong, see `fault`; nothing by default.
        seed: of the chance in the rules.

    Attributes:
        memory: the bus as it is when nothing goes wrong.
    """

    def __init__(self, *rules: str, seed: int = 0) -> None:
        self.memory = MemoryBus()
        self._random = Random(seed)
        self._faults = Faults()
        self._connections: list[FaultyTransport] = []
        self.fault(*rules)

    def fault(self, *rules: str) -> None:
        """Let this go wrong from now on, and nothing else.

        Args:
            rules: `drop`, `delay=SECONDS`, `duplicate`, `reorder` or `disconnect`, and how often: `drop:0.1` with that
                probability, `drop@0` the next message, `delay=0.2:1@5-10` all from second 5 to second 10.

        Raises:
            BadParameter: a rule is none; the message says what is wrong with it. Those before are in force.
        """
        now = monotonic()
        parsed = [parse(rule, now) for rule in rules]
        for text, rule in zip(rules, parsed, strict=True):
            if rule.kind not in BUS_KINDS:
                raise BadParameter(f"fault {text!r}: a bus in memory knows {', '.join(BUS_KINDS)}")
        self._faults = Faults(parsed, self._random)
        for connection in self._connections:
            connection.faults = self._faults

    @property
    def injected(self) -> Counter[str]:
        """How often something went wrong, by kind."""
        return sum((connection.injected for connection in self._connections), Counter())

    def connect(self) -> FaultyTransport:
        """A new connection, for what a test sends itself."""
        connection = FaultyTransport(self.memory.connect(), self._faults)
        self._connections.append(connection)
        return connection
