"""Durable work as an agent sees it: submit a job, await it here or elsewhere, fetch its result later."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Generator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import numpy as np

from ..bus.columns import Column, pack_array, pack_strings, unpack
from ..bus.deposit import deposit
from ..bus.errors import BadParameter, BusError, Busy, Closed, Expired, NoWorker, from_wire
from ..bus.frames import Request, decode_reply, encode
from ..bus.jetstream import JetStream, NoAnswer, Unavailable
from ..bus.job_results import Expected, JobResults
from ..bus.jobs import CALLER, MESSAGE_ID, JobSubjects, check_id
from ..bus.outbox import as_row, encode_parameters
from ..bus.pending import Row, owned_rows
from ..bus.pipeline import Full, Pipeline
from ..bus.subjects import Subjects
from ..bus.transport import Transport

FULL_S = 1.0

_FULL = "the stream of jobs is full: submit later, start workers, or make it larger"
_NO_DISK = "the server's disk, or what JetStream may use of it, is full: its operator makes room; submit later"
_NO_STREAM = (
    "nothing keeps jobs on this server: start a worker, and JetStream in the server; the log of a worker that is there "
    "says what it lacks"
)
_UNKNOWN = (
    "the server did not say that it has the job: submit it again under the same id; if that goes on, the server's log "
    "says why, and its operator acts: a full disk is one reason"
)


class NoResult(BusError):
    """No result lies under this id: the job is not done, its result has expired, or there never was one."""

    code = "no_result"


class Job:
    """A job that was submitted; await it for its answer.

    Attributes:
        id: its name on the bus, by which any process finds it.
    """

    __slots__ = ("_expected", "_results", "id")

    def __init__(self, results: JobResults, id_: str) -> None:
        self.id = id_
        self._results = results
        self._expected: Expected = results.expect(id_)

    def __await__(self) -> Generator[Any, None, Row]:
        """Wait until the job is done, however long that takes; whoever stops waiting does not stop the job.

        Returns:
            Its answer, `{name: value}`.

        Raises:
            BusError: what the operation answered instead, or what the last delivery failed with.
            NoResult: neither the job nor a result of it is there.
            Closed: the bus was closed.
        """
        return self._answer().__await__()

    async def _answer(self) -> Row:
        reply = await self._results.wait(self._expected)
        if not reply:
            raise NoResult(f"neither job {self.id!r} nor a result of it is there: submit it again")
        return answer_of(reply)

    def submitted(self) -> None:
        """The server has the job, with this process's inbox in it."""
        self._results.submitted(self._expected)


class Jobs:
    """Durable work over one connection.

    Args:
        transport: the connection.
        subjects: the bus's subject tree.
        timeout_s: for a job to be accepted, s.
    """

    def __init__(self, transport: Transport, subjects: Subjects, timeout_s: float) -> None:
        self._names = JobSubjects(subjects)
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._pipeline = Pipeline(transport)
        self._jetstream = JetStream(transport)
        self._results = JobResults(transport, self._pipeline, self._jetstream, self._names)
        self._token = secrets.token_hex(8)
        self._submitted = 0
        self._open: AsyncExitStack | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def submit(
        self,
        operation: str,
        row: Mapping[str, Any],
        parameters: Mapping[str, Any] | None = None,
        *,
        id: str = "",  # noqa: A002 - what a caller calls it
    ) -> Job:
        """Have one row run, whatever dies meanwhile; returns when the server has the job.

        A job is run at least once, and its first result stays. One that was submitted before under the same id is not
        queued again while it waits, nor run again while its result is there.

        Args:
            operation: its name, `matrix.matmul`.
            row: by column, as for `call`.
            parameters: the operation's parameters.
            id: at most 128 letters, digits, '_' and '-', one for all operations of the bus; a random one by default.

        Returns:
            The job, to be awaited now, later, or never.

        Raises:
            BadParameter, BadColumn, BadValue, TooLarge: the job cannot be sent.
            NoWorker: no worker has made the streams that jobs lie in.
            Busy: they are full, or the server's disk is.
            Expired: the server did not say that it has the job; submit it again under the same id. A server whose disk
                ran full while it wrote says nothing.
        """
        id_ = id or self._new_id()
        check_id(id_)
        subject = self._names.job(id_, _checked(operation, self._names.subjects))
        payload = _frame(row, parameters)
        if self._open is None:
            await self._start()
        job = Job(self._results, id_)
        if await self._store(subject, payload, {MESSAGE_ID: id_, CALLER: self._results.inbox(id_)}):
            job.submitted()
        return job

    async def job(self, id_: str) -> Job:
        """A job that was submitted before, here or by another process, to be awaited."""
        check_id(id_)
        await self._start()
        return Job(self._results, id_)

    async def result(self, id_: str) -> Row:
        """The answer of a job that is done.

        Raises:
            NoResult: there is none: yet, any more, or ever.
            BusError: what the job failed with; `Unavailable` or `NoAnswer` where the server could not be asked.
        """
        check_id(id_)
        await self._start()
        reply = await self._results.find(id_)
        if not reply:
            raise NoResult(f"job {id_!r} has no result: it is not done, or expired, or was never submitted")
        return answer_of(reply)

    async def close(self) -> None:
        """Stop waiting; what is awaited fails with `Closed`, and the jobs go on. Idempotent."""
        self._closed = True
        opened, self._open = self._open, None
        if opened is not None:
            await opened.aclose()

    async def _start(self) -> None:
        """Subscribe what jobs need, at the first of them."""
        if self._open is not None:
            return
        async with self._opening:
            if self._closed:
                raise Closed("the bus is closed")
            if self._open is None:
                async with AsyncExitStack() as stack:
                    for each in (self._pipeline, self._jetstream, self._results):
                        await stack.enter_async_context(each)
                    self._open = stack.pop_all()

    async def _store(self, subject: str, payload: bytes, headers: dict[str, str]) -> bool:
        """Publish until the server says that it has the job; false if it had it before."""
        try:
            return await deposit(self._pipeline, subject, payload, headers, self._timeout_s)
        except Full as full:
            raise Busy(_NO_DISK if full.disk else _FULL, FULL_S) from None
        except Unavailable:
            raise NoWorker(_NO_STREAM) from None
        except NoAnswer:
            raise Expired(_UNKNOWN) from None

    def _new_id(self) -> str:
        self._submitted += 1
        return f"{self._token}-{self._submitted:x}"


def answer_of(payload: bytes) -> Row:
    """The row that a result holds.

    Raises:
        BusError: the error that it holds instead, or `BadFrame` if it is no result.
    """
    reply = decode_reply(payload)
    if reply.err:
        raise from_wire(reply.err[0].code, reply.err[0].msg)
    return next(owned_rows({name: unpack(column, 1) for name, column in reply.cols.items()}))


def _frame(row: Mapping[str, Any], parameters: Mapping[str, Any] | None) -> bytes:
    """The request frame of one row."""
    columns = {name: _column(value) for name, value in as_row(row).items()}
    encoded = encode_parameters(parameters)
    return encode(
        Request(v=1, n=1, cols=columns, p=msgspec.Raw(encoded)) if encoded else Request(v=1, n=1, cols=columns)
    )


def _column(value: Any) -> Column:
    return pack_array(value[None]) if isinstance(value, np.ndarray) else pack_strings([value])


def _checked(operation: str, subjects: Subjects) -> str:
    """The operation, if it is a name that workers may serve."""
    try:
        subjects.operation(operation)
    except ValueError as error:
        raise BadParameter(str(error)) from None
    return operation
