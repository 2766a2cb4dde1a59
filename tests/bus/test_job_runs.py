"""Jobs that a worker has, when it is to stop."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np

from aikoryu.bus.columns import pack
from aikoryu.bus.frames import Reply, encode
from aikoryu.bus.job_runs import JobRuns
from aikoryu.bus.jobs import JobSubjects
from aikoryu.bus.nats_reader import Incoming
from aikoryu.bus.pipeline import Done, Full
from aikoryu.bus.subjects import Subjects
from aikoryu.config import JobSettings

NAMES = JobSubjects(Subjects())


class Pipeline:
    """To a server whose disk is full, on which no result lies."""

    def __init__(self) -> None:
        self.told: list[bytes] = []

    def tell(self, subject: str, payload: bytes) -> None:
        self.told.append(payload)

    def last_of(self, stream: str, subjects: Any, found: Any, done: Done) -> None:
        done(None)

    def publish(self, subject: str, payload: bytes, done: Done, headers: Any = None) -> None:
        done(Full("no room", 10047))


async def test_stop_gives_back_at_once_what_rests_before_it_is_stored() -> None:
    pipeline: Any = Pipeline()
    loopback: Any = SimpleNamespace(ask=lambda subject, frame, name: None)
    puller: Any = SimpleNamespace(finished=lambda size: None)
    runs = JobRuns(pipeline, loopback, NAMES, JobSettings(), lambda subject: True)
    ack = f"$JS.ACK.{NAMES.jobs}.echo.1.1.1.1.0"
    runs.take(Incoming(NAMES.job("one", "echo"), ack, b"", None), puller)
    await asyncio.sleep(0)
    loopback.on_answer("1", encode(Reply(id=0, at=[(0, 1)], cols={"y": pack(np.ones(1))}, last=True)), None)
    assert (runs.in_flight, pipeline.told) == (1, [])
    await runs.drain(0.01)
    assert runs.in_flight == 0
    assert pipeline.told[0].startswith(b"-NAK")
