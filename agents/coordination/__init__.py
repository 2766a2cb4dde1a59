"""Coordination of agents: locks, leaders, shared values, tasks, and answers by quorum."""

from ...bus.leases import Lease as Lock
from ...bus.leases import LeaseLost
from .coordination import Coordination
from .election import Election, Leader, Term
from .errors import Conflict, Fenced, NoQuorum, NoTask, TaskLost
from .quorum import gather
from .shared import Change, Entry, Shared
from .streams import streams
from .task import Task, TaskCounts
from .tasks import DeadTask, Tasks

__all__ = [
    "Change",
    "Conflict",
    "Coordination",
    "DeadTask",
    "Election",
    "Entry",
    "Fenced",
    "Leader",
    "LeaseLost",
    "Lock",
    "NoQuorum",
    "NoTask",
    "Shared",
    "Task",
    "TaskCounts",
    "TaskLost",
    "Tasks",
    "Term",
    "gather",
    "streams",
]
