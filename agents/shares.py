"""Which process owns which partitions of an agent. Pure: all who know of the same processes come to the same answer."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b


def share(process: str, processes: Collection[str], agent: str, partitions: int) -> set[int]:
    """The partitions that are a process's to own.

    A process that comes takes its share from all others, and moves nothing between them; what one that goes had is
    dealt to all.

    Args:
        process: which.
        processes: all that have the agent, this one included.
        agent: its name.
        partitions: how many there are.

    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998 (rendezvous hashing).
    """
    return {
        each for each in range(partitions) if max(processes, key=lambda other: _weight(other, agent, each)) == process
    }


def _weight(process: str, agent: str, partition: int) -> bytes:
    return blake2b(f"{process} {agent} {partition}".encode(), digest_size=8).digest()
