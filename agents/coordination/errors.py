"""What can go wrong between agents that coordinate: one class a code, in the style of `bus.errors`.

A lock or a term that is over is `bus.leases.LeaseLost`; what the server refused or did not answer is `Refused`,
`Unavailable` or `NoAnswer` of `bus.jetstream`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...bus.errors import BusError


class Conflict(BusError):
    """The key is not at the revision that was named; nothing was written. Read it, and decide again.

    Attributes:
        revision: of what is there, 0 for nothing.
    """

    code = "conflict"

    def __init__(self, message: str, revision: int) -> None:
        super().__init__(message)
        self.revision = revision


class Fenced(BusError):
    """A later holder has written; nothing was. Whoever gets this has lost its lock or its term, and must stop.

    Attributes:
        token: with which the key was last written.
    """

    code = "fenced"

    def __init__(self, message: str, token: int) -> None:
        super().__init__(message)
        self.token = token


class NoTask(BusError):
    """No task came within the time. Ask again, or do something else."""

    code = "no_task"


class TaskLost(BusError):
    """The task went to another, because its holder was silent for too long; it may be done twice."""

    code = "task_lost"


class NoQuorum(BusError):
    """Fewer succeeded than were needed; those still under way were cancelled.

    Attributes:
        results: of those that succeeded, as they came.
        errors: of those that failed, as they came.
    """

    code = "no_quorum"

    def __init__(self, message: str, results: Sequence[object], errors: Sequence[BaseException]) -> None:
        super().__init__(message)
        self.results = tuple(results)
        self.errors = tuple(errors)
