"""The graphs of one process: opened when somebody asks, or when their owner died; handed over before a planned stop."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import numpy as np
import structlog

from ...bus.client import Client
from ...bus.columns import pack_array
from ...bus.discovery import Discovery
from ...bus.errors import BadParameter, BadValue, BusError, Moved
from ...bus.frames import row_error
from ...bus.jetstream import JetStream
from ...bus.leases import LEASES, Lease, Leases
from ...bus.partition_log import PartitionLog
from ...bus.pipeline import Pipeline
from ...bus.service import Held, Service
from ...bus.snapshots import Snapshots
from ...bus.subjects import Subjects
from ...bus.transport import Message, Subscription, Transport
from ...config import VERSION, Settings
from ..device import Device, DeviceLost, OutOfMemory, open_device
from .calls import MOST_DIMENSIONS, OF_ANY_KEEPER, SYSTEM, Asked, is_graph
from .keeper import GraphKeeper
from .recovery import SnapshotTaker, followed, recovered
from .state import GraphState
from .words import Links, Puts, Spec, Words, encode

SERVICE = "aikoryu-context"
"""What discovery calls a process that keeps graphs."""
ALPHA, EPSILON = 0.3, 1e-3  # of a graph whose maker does not say
AFTER_DEATH_S = 0.1  # within which keepers try to take a graph whose lease ended, not all at once
LATEST_S = 60.0  # between two tries to take a graph that cannot be opened
YIELD_S = 30.0  # for an owner to answer all that it has taken

_log = structlog.get_logger(__name__)


class Keepers:
    """Keeps graphs over one connection.

    Args:
        transport: the connection; it stays open when this ends.
        settings: all groups.
        device: `cpu` or `cuda:0`; claimed with the first graph.
        worker: what this process is called on the bus, one subject token.

    Attributes:
        failed: gets `DeviceLost` when the device cannot be used any more: the process must end at once.
        graphs: those owned, by name.
    """

    def __init__(self, transport: Transport, settings: Settings, device: str, worker: str) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.graphs: dict[str, GraphKeeper] = {}
        bus = settings.bus
        self._subjects = Subjects(bus.prefix, bus.namespace)
        self._settings = settings
        self._worker = worker
        self._transport = transport
        threads = settings.cpu.threads or max(1, len(os.sched_getaffinity(0)) - 1)
        self._device: Device = open_device(device, threads)
        self._is_device_open = False
        # One thread uses the graphs, the other makes those that are being opened, which may take seconds.
        self._serving = ThreadPoolExecutor(1, "aikoryu-context")
        self._opening = ThreadPoolExecutor(1, "aikoryu-context-opening")
        self._service = Service(transport, self._subjects, worker, reply_prefixes=bus.reply_prefixes)
        self._service.on_cancel = self._on_cancel
        self._client = Client(transport, self._subjects, timeout_s=bus.timeout_s, frame_bytes=bus.frame_bytes)
        self._discovery = Discovery(
            transport, self._service, worker, VERSION, self._details, service_name=SERVICE, description="Keeps contexts"
        )
        self._jetstream = JetStream(transport)
        self._pipeline = Pipeline(transport)
        self._open = AsyncExitStack()
        self._turns: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: dict[str, int] = {}
        self._deaths: Subscription | None = None
        self._is_stopping = False

    async def start(self) -> None:
        """Listen; graphs are opened when they are asked for.

        Raises:
            BusError: the connection failed, or may not subscribe or keep what this serves; or there is no JetStream.
        """
        await self._open.enter_async_context(self._jetstream)
        await self._open.enter_async_context(self._pipeline)
        self._leases = await Leases.open(self._jetstream, self._subjects, self._worker)
        self._snapshots = await Snapshots.open(self._jetstream, self._pipeline, self._subjects)
        await self._client.start()
        await self._service.start()
        leases = f"{self._subjects.kept(LEASES)}.{SYSTEM}.*"
        self._deaths = await self._transport.subscribe(leases, self._on_lease)
        accepts = {"open": self._accept_open, "move": self._accept_move}
        for call, accept in accepts.items():
            await self._service.serve(f"{SYSTEM}.{call}", accept, OF_ANY_KEEPER[call].metadata())
        await self._discovery.start()
        await self._transport.flush()

    async def stop(self) -> bool:
        """Have other keepers take the graphs, or let go of them; nothing that was taken stays unanswered.

        Returns:
            False if `worker.drain_s` was not enough.
        """
        self._is_stopping = True
        drained = True
        try:
            async with asyncio.timeout(self._settings.worker.drain_s):
                await self._service.leave()
                await asyncio.gather(*(self._hand_over(name) for name in list(self.graphs)))
        except TimeoutError:
            drained = False
            _log.warning("graphs not handed over in time", graphs=sorted(self.graphs))
        for task in self._tasks:
            task.cancel()
        if self._deaths is not None:
            await self._deaths.unsubscribe()
        await self._discovery.stop()
        drained = await self._service.drain(1.0) and drained
        await self._client.close()
        await self._open.aclose()
        self._serving.shutdown(wait=drained)
        self._opening.shutdown(wait=drained)
        return drained

    def _accept_open(self, held: Held) -> None:
        asked = Asked("open", held.request)
        for row, name in enumerate(asked.texts("graph")):
            given = (
                int(asked.array("dimension")[row]),
                *(float(asked.array(one)[row]) for one in ("alpha", "epsilon")),
            )
            self._start(self._answering(held, row, partial(self._answer_open, name, *given)))

    def _accept_move(self, held: Held) -> None:
        for row, name in enumerate(Asked("move", held.request).texts("graph")):
            self._start(self._answering(held, row, partial(self._answer_move, name)))

    async def _answer_open(self, name: str, dimension: float, alpha: float, epsilon: float) -> dict[str, Any]:
        keeper = await self._opened(name, _spec(int(dimension), alpha, epsilon))
        spec = keeper.state.spec
        return {
            "epoch": np.uint64(keeper.epoch),
            "dimension": np.uint32(spec.dimension),
            "alpha": np.float32(spec.alpha),
            "epsilon": np.float32(spec.epsilon),
        }

    async def _answer_move(self, name: str) -> dict[str, Any]:
        return {"moved": np.bool_(await self._moved(name))}

    async def _answering(self, held: Held, row: int, answer: Callable[[], Coroutine[Any, Any, dict[str, Any]]]) -> None:
        """Answer one row of a frame with what comes of something."""
        try:
            found = await answer()
        except BusError as error:
            self._service.answer(held, [], {}, [row_error(error, row, 1)])
        except Exception as error:
            _log.exception("graph not opened", error=str(error))
            failed = Moved("the worker could not open the graph; its log holds the reason", retry_after_s=0.5)
            self._service.answer(held, [], {}, [row_error(failed, row, 1)])
        else:
            columns = {name: pack_array(np.array([value])) for name, value in found.items()}
            self._service.answer(held, [(row, 1)], columns, [])

    async def _opened(self, name: str, spec: Spec | None) -> GraphKeeper:
        """A graph that is this process's, or becomes so, or is made if there is a spec.

        Raises:
            BadParameter: there is no such graph, or none may be called so.
            Moved: it is another's.
            Others as `recovered` and `PartitionLog.claim`.
        """
        if not is_graph(name):
            raise BadParameter(f"graph {name!r}: use 1 to 64 letters, digits, '_' and '-'")
        async with self._turn(name):
            if name in self.graphs:
                return self.graphs[name]
            if self._is_stopping:
                raise Moved("this worker stops: ask again")
            lease = await self._leases.try_acquire(_kept(name), ttl_s=self._settings.context.lease_s)
            if lease is None:
                raise Moved(f"graph {name} has an owner, or had one just now: ask it, or again soon", retry_after_s=0.1)
            try:
                log = await PartitionLog.open(self._jetstream, self._subjects, _kept(name))
                state, after = await recovered(name, log, self._snapshots, self._device, self._in_opening_thread)
                if state is None and spec is None:
                    raise BadParameter(f"there is no graph {name}: put something, or open it with a dimension")
                return await self._owned(name, lease, log, state, after, spec)
            except BaseException:
                await lease.release()
                raise

    async def _moved(self, name: str) -> bool:
        """Take a graph from its owner, who serves it until this one has read its log; false if there is no such."""
        async with self._turn(name):
            if name in self.graphs or self._is_stopping:
                return False
            log = await PartitionLog.open(self._jetstream, self._subjects, _kept(name))
            state, after = await recovered(name, log, self._snapshots, self._device, self._in_opening_thread)
            if state is None:
                return False
            # What was said meanwhile is read before the owner ends, not after.
            state, after = await followed(log, state, after, self._device, self._in_opening_thread)
            await self._client.call(f"{SYSTEM}.yield.{name}", {"token": np.uint64(after)}, timeout_s=YIELD_S)
            async with asyncio.timeout(YIELD_S):
                lease = await self._leases.acquire(_kept(name), ttl_s=self._settings.context.lease_s)
            try:
                await self._owned(name, lease, log, state, after, None)
            except BaseException:
                await lease.release()
                raise
            return True

    async def _owned(
        self, name: str, lease: Lease, log: PartitionLog, state: GraphState | None, after: int, spec: Spec | None
    ) -> GraphKeeper:
        """Own a graph whose lease this process has: from the claim on, nobody else writes to its log."""
        await log.claim(lease.token)
        state, _ = await followed(log, state, after, self._device, self._in_opening_thread)
        if state is None:
            assert spec is not None, "a graph is made of a spec"
            state = await self._made(log, spec)
        keeper = GraphKeeper(
            name,
            state,
            log,
            lease,
            self._service,
            self._in_thread,
            self._settings.context.window_rows,
            self._transport.max_payload,
            SnapshotTaker(name, self._snapshots, self._settings.context.snapshot_bytes),
            self._device.name,
            partial(self._on_yield, name),
        )
        await keeper.start()
        self.graphs[name] = keeper
        self._failures.pop(name, None)
        self._start(self._until_ended(name, keeper))
        _log.info("graph owned", graph=name, epoch=log.last, device=self._device.name)
        return keeper

    async def _made(self, log: PartitionLog, spec: Spec) -> GraphState:
        words = Words(time.time_ns() // 10**6, Puts.none(spec.dimension), Links.none(), spec)
        epoch = await log.append(encode(words), log.last)
        state: GraphState = await self._in_opening_thread(partial(GraphState, spec, self._device))
        await self._in_opening_thread(partial(state.apply, epoch, words))
        return state

    async def _until_ended(self, name: str, keeper: GraphKeeper) -> None:
        await keeper.ended.wait()
        if self.graphs.get(name) is keeper:
            del self.graphs[name]

    async def _hand_over(self, name: str) -> None:
        """Have another keeper take a graph, if there is one; then let go of it."""
        keeper = self.graphs[name]
        drain_s = self._settings.worker.drain_s
        with suppress(BusError):
            await self._client.call(f"{SYSTEM}.move", {"graph": name}, timeout_s=drain_s)
        await keeper.leave()

    def _on_yield(self, name: str, held: Held) -> None:
        """The keeper that follows has read the log, and wants the lease."""
        self._start(self._answering(held, 0, partial(self._yielded, name)))

    async def _yielded(self, name: str) -> dict[str, Any]:
        keeper = self.graphs[name]
        await keeper.leave()
        return {"epoch": np.uint64(keeper.epoch)}

    def _on_lease(self, message: Message) -> None:
        """A lease of a graph has changed: one that ended without another holder is taken."""
        if not message.data and not self._is_stopping:
            self._start(self._take(message.subject.rpartition(".")[2]))

    async def _take(self, name: str) -> None:
        """Own a graph whose owner died, unless another is quicker."""
        failures = self._failures.get(name, 0)
        await asyncio.sleep(random.random() * AFTER_DEATH_S + min(LATEST_S, failures and 0.1 * 2**failures))
        try:
            await self._opened(name, None)
        except Moved:
            return
        except (BusError, BadValue) as error:
            _log.warning("graph not taken", graph=name, error=str(error))
        except Exception:
            _log.exception("graph not taken", graph=name)
        else:
            return
        self._failures[name] = failures + 1

    def _turn(self, name: str) -> asyncio.Lock:
        """One at a time opens a graph."""
        return self._turns.setdefault(name, asyncio.Lock())

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        """Run a function in the thread that uses the graphs; on a GPU no longer than `context.limit_s`."""
        limit_s = self._settings.context.limit_s if self._device.is_cuda else None
        try:
            async with asyncio.timeout(limit_s):
                return await self._run(self._serving, work)
        except TimeoutError:
            self._fail(DeviceLost(f"{self._device.name} has not answered for {limit_s:g} s"))
            raise DeviceLost("the device hangs") from None

    async def _in_opening_thread(self, work: Callable[[], Any]) -> Any:
        """Run a function in the thread that makes graphs."""
        return await self._run(self._opening, partial(self._with_device, work))

    async def _run(self, thread: ThreadPoolExecutor, work: Callable[[], Any]) -> Any:
        running = asyncio.get_running_loop().run_in_executor(thread, work)
        try:
            return await asyncio.shield(running)
        except (RuntimeError, MemoryError) as error:
            explained = self._device.explain(error)
            if isinstance(explained, (DeviceLost, OutOfMemory, MemoryError)):
                self._fail(DeviceLost(str(explained)))
            raise

    def _with_device(self, work: Callable[[], Any]) -> Any:
        if not self._is_device_open:
            self._device.open()
            self._is_device_open = True
        return work()

    def _fail(self, error: DeviceLost) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    def _on_cancel(self, held: Held, rows: list[int]) -> None:
        keeper = self.graphs.get(held.endpoint.subject.rpartition(".")[2])
        if keeper is not None:
            keeper.withdraw(held, rows)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _details(self, operation: str) -> dict[str, Any]:
        return {"device": self._device.name, "graphs": sorted(self.graphs)}


def _kept(name: str) -> str:
    """What a graph's lease and log are called."""
    return f"{SYSTEM}.{name}"


def _spec(dimension: int, alpha: float, epsilon: float) -> Spec | None:
    """What a graph is made with, if it is not there; None if its dimension is not said.

    Raises:
        BadParameter: a number is not allowed.
    """
    if not dimension:
        return None
    alpha, epsilon = alpha or ALPHA, epsilon or EPSILON
    if dimension > MOST_DIMENSIONS or not 0 < alpha <= 1 or not 0 < epsilon < 1e30:
        told = f"dimension {dimension}, alpha {alpha:g}, epsilon {epsilon:g}"
        raise BadParameter(f"{told}: use up to {MOST_DIMENSIONS}, up to 1, above 0")
    return Spec(dimension, alpha, epsilon)
