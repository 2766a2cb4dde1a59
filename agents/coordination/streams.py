"""Where coordination lies on a server: two buckets and two streams a bus, which its agents share.

KV_<prefix>-<namespace>-locks     locks, terms, owners; <prefix>.locks.v1.<namespace>.> tells of changes
KV_<prefix>-<namespace>-shared    <store>.<key>; <prefix>.shared.v1.<namespace>.> tells of changes
<prefix>-<namespace>-tasks        <prefix>.tasks.v1.<namespace>.<queue>.<id>
<prefix>-<namespace>-buried       <prefix>.buried.v1.<namespace>.<queue>.<id>
"""

from __future__ import annotations

from typing import Any

from ...bus.bucket import Bucket
from ...bus.jetstream import JetStream
from ...bus.jobs import DEAD_TTL_S, DEDUPE_S
from ...bus.lease_bucket import LeaseBucket
from ...bus.permissions import BURIED, LOCKS, SHARED, TASKS
from ...bus.subjects import Subjects
from ..state_store import states

MOST_BYTES = 256 << 20  # of each stream
# What an operator may change of them: the rest is what coordination rests on.
OPERATORS = ("max_bytes", "max_age", "duplicate_window")

# How long the server remembers that a key expired or was deleted, s. Who watches and was away for longer compares.
MARKER_S = 3600

_S = 10**9  # JetStream's durations are in ns


def streams(jetstream: JetStream, subjects: Subjects) -> list[dict[str, Any]]:
    """All of them, and that of states, as JetStream has it: for an operator, where agents may not make any."""
    locks = LeaseBucket(jetstream, subjects, LOCKS).config
    shares = shared(shared_bucket(jetstream, subjects))
    return [locks, shares, buried_tasks(subjects), tasks(subjects), states(subjects)]


def shared_bucket(jetstream: JetStream, subjects: Subjects) -> Bucket:
    """The bucket of shared values."""
    return Bucket(jetstream, subjects, SHARED, "key")


def shared(bucket: Bucket) -> dict[str, Any]:
    """The stream of shared values."""
    return bucket.config(MARKER_S, allow_direct=True, max_bytes=MOST_BYTES)


def tasks(subjects: Subjects) -> dict[str, Any]:
    """The stream of tasks: one a queue and id, until it is done."""
    return {
        "name": subjects.stream(TASKS),
        "subjects": [task(subjects, "*", "*")],
        "storage": "file",
        "retention": "workqueue",
        # Full means refused, as is a second task of an id while the first is there: nothing accepted is dropped.
        "discard": "new",
        "discard_new_per_subject": True,
        "max_msgs_per_subject": 1,
        "max_bytes": MOST_BYTES,
        "duplicate_window": DEDUPE_S * _S,
    }


def buried_tasks(subjects: Subjects) -> dict[str, Any]:
    """The stream of tasks given up; of an id the last stays."""
    return {
        "name": subjects.stream(BURIED),
        "subjects": [buried_task(subjects, "*", "*")],
        "storage": "file",
        "discard": "old",
        "max_msgs_per_subject": 1,
        "max_bytes": MOST_BYTES,
        "max_age": DEAD_TTL_S * _S,
        "allow_direct": True,
    }


def task(subjects: Subjects, queue: str, id_: str) -> str:
    """The subject of a task; `*` stands for any."""
    return f"{subjects.kept(TASKS)}.{queue}.{id_}"


def buried_task(subjects: Subjects, queue: str, id_: str) -> str:
    """The subject of a task given up; `*` stands for any."""
    return f"{subjects.kept(BURIED)}.{queue}.{id_}"
