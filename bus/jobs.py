"""Durable work: what a job is on the wire, where it lies, and what becomes of one that was run.

A job is a request frame of one row that a stream keeps until its result is stored. It is taken by any worker that
serves the operation, and run at least once; of several results the first stays.

<root>.job.<id>.<operation>     waiting, or with a worker; one message an id
<root>.result.<id>              the reply frame, an error's too, for `results_ttl_s`
<root>.dead.<id>.<operation>    jobs given up, with the reason in their headers
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from ..config import JobSettings
from .errors import (
    BadColumn,
    BadFrame,
    BadParameter,
    BadReply,
    BadValue,
    BadVersion,
    Busy,
    EngineDown,
    NoTensor,
    NotOwner,
    TooLarge,
)
from .frames import RowError, Run, is_json
from .jetstream import EXPECTED_LAST
from .subjects import Subjects, check_tokens

# A publish that is sent again within this time is known by its number; later by the job itself, or by its result.
DEDUPE_S = 30
DEAD_TTL_S = 30 * 86400
DEAD_BYTES = 256 << 20
LONGEST_RETRY_S = 60.0

MESSAGE_ID = "Nats-Msg-Id"
CALLER = "Aikoryu-Caller"  # the inbox that a result is sent to once it is stored
REASON = "Aikoryu-Reason"
REASON_CODE = "Aikoryu-Reason-Code"
DELIVERED = "Aikoryu-Delivered"
FIRST_ONLY = {EXPECTED_LAST: "0"}  # refuses all but the first message of a subject

# What a second try would meet too: the caller must act.
FINAL = frozenset(
    error.code
    for error in (BadColumn, BadFrame, BadParameter, BadReply, BadValue, BadVersion, NoTensor, NotOwner, TooLarge)
)

_S = 10**9  # JetStream's durations are in ns


@dataclass(frozen=True)
class JobSubjects:
    """Names of one bus's streams and subjects of jobs.

    Attributes:
        subjects: the bus's tree.
    """

    subjects: Subjects

    @property
    def jobs(self) -> str:
        """The stream of jobs."""
        return self._stream("JOBS")

    @property
    def results(self) -> str:
        """The stream of results."""
        return self._stream("RESULTS")

    @property
    def dead(self) -> str:
        """The stream of jobs given up."""
        return self._stream("DEAD")

    def job(self, id_: str, operation: str) -> str:
        """The subject of a job; `*` and `>` stand for any."""
        return f"{self.subjects.root}.job.{id_}.{operation}"

    def result(self, id_: str) -> str:
        """The subject of a job's result."""
        return f"{self.subjects.root}.result.{id_}"

    def dead_letter(self, id_: str, operation: str) -> str:
        """The subject of a job given up."""
        return f"{self.subjects.root}.dead.{id_}.{operation}"

    def parts(self, subject: str) -> tuple[str, str]:
        """Id and operation of a job's subject."""
        id_, _, operation = subject.removeprefix(f"{self.subjects.root}.job.").partition(".")
        return id_, operation

    def _stream(self, what: str) -> str:
        return f"{self.subjects.prefix}-{self.subjects.namespace}-{what}"


def streams(names: JobSubjects, settings: JobSettings) -> list[dict[str, Any]]:
    """The streams that jobs need, as JetStream's configurations.

    That of jobs comes last: where there is no room for results, no job is accepted.
    """
    common = {"storage": "file", "num_replicas": settings.replicas, "max_msgs_per_subject": 1}
    jobs = {
        "name": names.jobs,
        "subjects": [names.job("*", ">")],
        "retention": "workqueue",
        # Full means refused, as is a second job of an id while the first is there: nothing accepted is dropped.
        "discard": "new",
        "discard_new_per_subject": True,
        "max_bytes": settings.max_bytes,
        "duplicate_window": DEDUPE_S * _S,
    }
    results = {
        "name": names.results,
        "subjects": [names.result("*")],
        "discard": "old",
        "allow_direct": True,
        "max_bytes": settings.results_bytes,
        "max_age": int(settings.results_ttl_s * _S),
    }
    dead = {
        "name": names.dead,
        "subjects": [names.dead_letter("*", ">")],
        "discard": "old",
        "max_bytes": DEAD_BYTES,
        "max_age": DEAD_TTL_S * _S,
    }
    return [common | each for each in (results, dead, jobs)]


def consumer(names: JobSubjects, operation: str, settings: JobSettings) -> dict[str, Any]:
    """The consumer that all workers of an operation share, as JetStream's configuration.

    It knows no `max_deliver`: the server would leave a job in the stream, undelivered. Workers count instead.
    """
    work = work_consumer(consumer_name(operation), names.job("*", operation), settings.ack_wait_s)
    return work | {"num_replicas": settings.replicas}


def work_consumer(name: str, subjects: str, ack_wait_s: float) -> dict[str, Any]:
    """A consumer that hands each message to one of those who pull, and again if that one falls silent.

    Args:
        name: of the consumer.
        subjects: whose messages.
        ack_wait_s: of silence, after which another gets a message.
    """
    return {
        "durable_name": name,
        "filter_subject": subjects,
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait_s * _S),
        "max_ack_pending": -1,  # who pulls bounds what it takes
        "max_waiting": 4096,
    }


def consumer_name(operation: str) -> str:
    """The name of an operation's consumer, which has no dots; names that differ stay different."""
    return operation.replace("_", "__").replace(".", "_-")


def check_id(id_: str) -> None:
    """Raise BadParameter unless `id_` can name a job."""
    try:
        check_tokens(id_, "id")
    except ValueError as error:
        raise BadParameter(str(error)) from None
    if "." in id_ or len(id_) > 128:
        raise BadParameter(f"id {id_[:140]!r}: use at most 128 letters, digits, '_' and '-', without a dot")


class Outcome(msgspec.Struct):
    """What of a reply frame decides about its job."""

    at: list[Run] = []
    err: list[RowError] = []
    last: bool = False

    @property
    def whole(self) -> bool:
        """Whether it answers a job: a frame of one row gets one reply, the opening of a stream another kind."""
        return self.last and bool(self.at or self.err)


_outcomes = msgspec.msgpack.Decoder(Outcome)
_json_outcomes = msgspec.json.Decoder(Outcome)


def outcome_of(reply: bytes) -> Outcome:
    """Whether a reply frame is an answer, or which error."""
    return _json_outcomes.decode(reply) if is_json(reply) else _outcomes.decode(reply)


class Next(Enum):
    """What to do with a job that was answered."""

    STORE = "store the answer, or the caller's error, as its result"
    WAIT = "the worker is busy: nothing was run; offer it again here"
    RETRY = "give it back, to be delivered again after a while"
    BURY = "it failed as often as it may: dead-letter it"


def after(outcome: Outcome, delivered: int, max_deliver: int, waited_s: float, longest_wait_s: float) -> Next:
    """What becomes of a job.

    Args:
        outcome: of this run.
        delivered: times it was delivered, this one included.
        max_deliver: times it may fail.
        waited_s: how long this worker has been too busy for it, s.
        longest_wait_s: when another worker should have it instead, s; not the last time, for being busy is no failure.
    """
    if not outcome.err or outcome.err[0].code in FINAL:
        return Next.STORE
    if outcome.err[0].code in (Busy.code, EngineDown.code):
        return Next.WAIT if waited_s < longest_wait_s or delivered >= max_deliver else Next.RETRY
    return Next.RETRY if delivered < max_deliver else Next.BURY


def retry_s(delivered: int, first_s: float, chance: float) -> float:
    """How long a job rests before its next delivery, s: twice as long each time, up to a minute.

    Args:
        delivered: times it was delivered.
        first_s: after the first.
        chance: 0 to 1; it moves the time by half, so that rows that failed with the one that ended an engine do not
            meet it again.
    """
    return min(LONGEST_RETRY_S, first_s * 2.0 ** min(delivered - 1, 16)) * (0.5 + chance)


def delivery_of(ack: str) -> int:
    """Which delivery of its message this is, from the subject that it is acknowledged on.

    Source: NATS ADR-15: `$JS.ACK.<stream>.<consumer>.<delivered>…`, or two tokens more in front.
    """
    tokens = ack.split(".")
    return int(tokens[4] if len(tokens) == 9 else tokens[6])
