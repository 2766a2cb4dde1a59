"""The graphs of one process: opened when somebody asks, or when their owner died; handed over before a planned stop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import structlog

from ...bus.client import Client
from ...bus.columns import pack_array
from ...bus.discovery import KEEPERS, Discovery
from ...bus.errors import BadParameter, BusError, Busy, Moved, NotWritten, NoWorker
from ...bus.frames import row_error
from ...bus.jetstream import JetStream, Refused
from ...bus.leases import LEASES, Lease, Leases
from ...bus.partition_log import PartitionLog
from ...bus.pipeline import Pipeline
from ...bus.service import Held, Service
from ...bus.snapshots import Snapshots
from ...bus.subjects import Subjects
from ...bus.transport import Message, Subscription, Transport
from ...config import VERSION, Settings
from ..context_figures import KeeperFigures, figures_of
from ..device import Device, DeviceLost, open_device, threads_of
from .calls import MOST_DIMENSIONS, OF_ANY_KEEPER, SYSTEM, Asked, is_graph
from .keeper import GraphKeeper
from .recovery import Recovery, SnapshotTaker
from .rests import Rests
from .route import prepare
from .state import GraphState
from .threads import DeviceThreads
from .words import Links, Puts, Spec, Words, encode

ALPHA, EPSILON = 0.3, 1e-3  # of a graph whose maker does not say
AFTER_DEATH_S = 0.1  # within which keepers try to take a graph whose lease ended, not all at once
AGAIN_S = 0.5  # before callers ask again for a graph that could not be opened
LET_GO_S = 1.0  # of the graphs' leases, when the device is lost
LEAST_DRAIN_S = 1.0  # to let go of graphs in order, even if nothing is to be waited for
YIELD_S = 30.0  # for an owner to answer all that it has taken
MOVE_SHARE = 0.5  # of the time for a stop, for others to take the graphs; what is left is for those that nobody took

_log = structlog.get_logger(__name__)


class Keepers:
    """Keeps graphs over one connection.

    Args:
        transport: the connection; it stays open when this ends.
        settings: all groups.
        device: `cpu` or `cuda:0`; claimed when there is a graph, whosever.
        worker: what this process is called on the bus, one subject token.
        on_loaded: as of `DeviceThreads`.

    Attributes:
        failed: gets `DeviceLost` when the device cannot be used any more: the process must end at once.
        graphs: those owned, by name.
    """

    def __init__(
        self, transport: Transport, settings: Settings, device: str, worker: str, on_loaded: Callable[[], object]
    ) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.graphs: dict[str, GraphKeeper] = {}
        bus = settings.bus
        self._subjects = Subjects(bus.prefix, bus.namespace)
        self._settings = settings
        self._worker = worker
        self._transport = transport
        self._device: Device = open_device(device, threads_of(settings.cpu))
        limit_s = settings.context.limit_s if self._device.is_cuda else None
        self._threads = DeviceThreads(self._device, limit_s, self._fail, on_loaded)
        self._service = Service(transport, self._subjects, worker, reply_prefixes=bus.reply_prefixes)
        self._service.on_cancel = self._on_cancel
        self._client = Client(transport, self._subjects, timeout_s=bus.timeout_s, frame_bytes=bus.frame_bytes)
        self._discovery = Discovery(
            transport, self._service, worker, VERSION, self._details, service_name=KEEPERS, description="Keeps contexts"
        )
        self._jetstream = JetStream(transport)
        self._pipeline = Pipeline(transport)
        self._open = AsyncExitStack()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opens: set[asyncio.Task[None]] = set()
        self._rests = Rests()
        self._ownerless: set[str] = set()
        self._taking: set[str] = set()
        self._deaths: Subscription | None = None
        self._is_stopping = False
        self._is_failing = False
        self._is_ready = False

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

        What is being opened is left to others.

        Returns:
            False if `worker.drain_s` was not enough.
        """
        self._is_stopping = True
        drained = True
        try:
            async with asyncio.timeout(max(self._settings.worker.drain_s, LEAST_DRAIN_S)):
                await self._service.leave()
                await _cancelled(self._opens)
                await asyncio.gather(*map(self._hand_over, list(self.graphs.values())))
        except TimeoutError:
            drained = False
            _log.warning("graphs not handed over in time", graphs=sorted(self.graphs))
            keepers = list(self.graphs.values())
            for keeper in keepers:
                keeper.give_up()
            await asyncio.gather(*(keeper.ended.wait() for keeper in keepers))
        await _cancelled(self._opens | self._tasks)
        if self._deaths is not None:
            await self._deaths.unsubscribe()
        await self._discovery.stop()
        drained = await self._service.drain(1.0) and drained
        await self._client.close()
        await self._open.aclose()
        self._threads.stop(wait=drained)
        return drained

    @property
    def figures(self) -> KeeperFigures:
        """What has become of the graphs, without asking the device."""
        return figures_of(self._device.name, self.graphs.values())

    def _accept_open(self, held: Held) -> None:
        asked = Asked("open", held.request)
        dimensions, alphas, epsilons = (asked.array(one).tolist() for one in ("dimension", "alpha", "epsilon"))
        for row, given in enumerate(zip(asked.texts("graph"), dimensions, alphas, epsilons, strict=True)):
            self._start(self._answering(held, row, partial(self._answer_open, *given)), self._opens)

    def _accept_move(self, held: Held) -> None:
        for row, name in enumerate(Asked("move", held.request).texts("graph")):
            self._start(self._answering(held, row, partial(self._answer_move, name)), self._opens)

    async def _answer_open(self, name: str, dimension: int, alpha: float, epsilon: float) -> dict[str, Any]:
        keeper = await self._opened(name, _spec(dimension, alpha, epsilon))
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
        except asyncio.CancelledError:
            self._service.answer(held, [], {}, [row_error(_stops(), row, 1)])
            raise
        except Exception as error:
            _log.exception("graph not opened", error=str(error))
            failed = Moved("the worker could not open the graph; its log holds the reason", AGAIN_S)
            self._service.answer(held, [], {}, [row_error(failed, row, 1)])
        else:
            columns = {name: pack_array(np.array([value])) for name, value in found.items()}
            self._service.answer(held, [(row, 1)], columns, [])

    async def _opened(self, name: str, spec: Spec | None) -> GraphKeeper:
        """A graph that is this process's, or becomes so, or is made if there is a spec.

        Raises:
            BadParameter: there is no such graph, or none may be called so.
            Moved: it is another's, or cannot be opened now; ask again.
            NotWritten: the server refuses what is to be written.
        """
        async with self._turn(name):
            keeper = self.graphs.get(name)
            if keeper is not None:
                if not keeper.is_leaving:
                    return keeper
                await keeper.ended.wait()
            if self._is_stopping or self._is_failing:
                raise _stops()
            if rest_s := self._rests.left_s(name, monotonic()):
                raise Moved(f"graph {name} failed here just now: ask again", rest_s)
            recovery = await self._recovery(name)
            # Without the lease, whose end would have all keepers look for a graph that nobody made.
            if spec is None and not await recovery.is_graph_there():
                raise BadParameter(f"there is no graph {name}: put something, or open it with a dimension")
            lease = await self._leases.try_acquire(_kept(name), ttl_s=self._settings.context.lease_s)
            if lease is None:
                raise Moved(f"graph {name} has an owner, or had one just now: ask it, or again soon", 0.1)
            async with _released_if_failed(lease):
                await recovery.start()
                return await self._owned(name, lease, recovery, spec)

    async def _moved(self, name: str) -> bool:
        """Take a graph from its owner, who serves it until this one has read its log.

        Returns:
            Whether it is this process's now; another may have been quicker.
        """
        async with self._turn(name):
            if name in self.graphs or self._is_stopping or self._is_failing:
                return False
            recovery = await self._recovery(name)
            await recovery.start()
            if recovery.state is None:
                return False
            # What was said meanwhile is read before the owner ends, not after, and what takes seconds is done.
            await self._threads.make(partial(prepare, recovery.state.graph))
            await recovery.follow()
            token = {"token": np.uint64(recovery.after)}
            with suppress(NoWorker):  # it had no time to wait for this, and has left
                await self._client.call(f"{SYSTEM}.yield.{name}", token, timeout_s=YIELD_S)
            lease = await self._leases.try_acquire(_kept(name), ttl_s=self._settings.context.lease_s)
            if lease is None:
                return False
            async with _released_if_failed(lease):
                await self._owned(name, lease, recovery, None)
            return True

    async def _recovery(self, name: str) -> Recovery:
        log = await PartitionLog.open(self._jetstream, self._subjects, _kept(name))
        snapshots = SnapshotTaker(name, self._snapshots, self._settings.context.snapshot_bytes)
        return Recovery(log, snapshots, self._device, self._threads.make)

    async def _owned(self, name: str, lease: Lease, recovery: Recovery, spec: Spec | None) -> GraphKeeper:
        """Own a graph whose lease this process has: from the claim on, nobody else writes to its log."""
        log = recovery.log
        await log.claim(lease.token)
        await recovery.follow()
        state = recovery.state
        if state is None:
            if spec is None:
                raise BadParameter(f"there is no graph {name} any more: put something, or open it with a dimension")
            state = await self._made(log, spec)
        await self._threads.make(partial(prepare, state.graph))
        keeper = GraphKeeper(
            name,
            state,
            log,
            lease,
            self._service,
            self._threads.use,
            self._settings.context.window_rows,
            self._transport.max_payload,
            recovery.snapshots,
            self._device.name,
            partial(self._on_yield, name),
        )
        await keeper.start()
        self.graphs[name] = keeper
        self._start(self._until_ended(name, keeper), self._tasks)
        _log.info("graph owned", graph=name, epoch=log.last, device=self._device.name)
        return keeper

    async def _made(self, log: PartitionLog, spec: Spec) -> GraphState:
        words = Words(time.time_ns() // 10**6, Puts.none(spec.dimension), Links.none(), spec)
        epoch = await log.append(encode(words), log.last)
        state: GraphState = await self._threads.make(partial(GraphState, spec, self._device))
        await self._threads.make(partial(state.apply, epoch, words))
        return state

    async def _until_ended(self, name: str, keeper: GraphKeeper) -> None:
        await keeper.ended.wait()
        if keeper.was_given_up:
            self._rests.failed(name, monotonic())
        if self.graphs.get(name) is keeper:
            del self.graphs[name]

    async def _hand_over(self, keeper: GraphKeeper) -> None:
        """Have another keeper take a graph, if there is one; then let go of it."""
        within_s = self._settings.worker.drain_s * MOVE_SHARE
        with suppress(BusError):
            await self._client.call(f"{SYSTEM}.move", {"graph": keeper.name}, timeout_s=within_s)
        await keeper.leave()

    def _on_yield(self, name: str, held: Held) -> None:
        """The keeper that follows has read the log, and wants the lease."""
        self._start(self._answering(held, 0, partial(self._yielded, self.graphs.get(name))), self._tasks)

    async def _yielded(self, keeper: GraphKeeper | None) -> dict[str, Any]:
        if keeper is None:
            raise Moved("this worker does not have the graph: ask again")
        await keeper.leave()
        _log.info("graph handed over", graph=keeper.name, epoch=keeper.epoch)
        return {"epoch": np.uint64(keeper.epoch)}

    def _on_lease(self, message: Message) -> None:
        """A lease of a graph has changed: one that ended without another holder is taken."""
        if self._is_stopping or self._is_failing:
            return
        if message.data:
            self._get_ready()
            return
        name = message.subject.rpartition(".")[2]
        self._ownerless.add(name)
        if name not in self._taking:
            self._taking.add(name)
            self._start(self._take(name), self._opens)

    def _get_ready(self) -> None:
        """Claim the device, which loads torch, because there are graphs: their owner may die."""
        if not self._is_ready:
            self._is_ready = True
            self._start(self._claim(), self._tasks)

    async def _claim(self) -> None:
        with suppress(DeviceLost):  # which `failed` tells
            await self._threads.make(lambda: None)

    async def _take(self, name: str) -> None:
        """Own a graph whose owner died, unless another is quicker; try again while it fails here."""
        try:
            while name in self._ownerless:
                self._ownerless.discard(name)
                await asyncio.sleep(random.random() * AFTER_DEATH_S + self._rests.left_s(name, monotonic()))
                try:
                    await self._opened(name, None)
                except BusError as error:
                    if self._rests.left_s(name, monotonic()):
                        _log.warning("graph not taken", graph=name, error=str(error))
                        self._ownerless.add(name)
                except Exception:
                    _log.exception("graph not taken", graph=name)
                    self._ownerless.add(name)
        finally:
            self._taking.discard(name)

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """One at a time opens a graph; one that fails is left alone for a while.

        Raises:
            BadParameter: no graph may be called so.
            Moved, NotWritten: instead of what the server or the log say.
        """
        if not is_graph(name):
            raise BadParameter(f"graph {name!r}: use 1 to 64 letters, digits, '_' and '-'")
        turn = self._turns.setdefault(name, asyncio.Lock())
        async with turn:
            try:
                yield
            except (Busy, BadParameter):
                raise
            except Exception as error:
                self._rests.failed(name, monotonic())
                if isinstance(error, Refused):
                    raise NotWritten(f"graph {name} cannot be opened: {error}") from error
                if isinstance(error, BusError):
                    raise Moved(f"graph {name} cannot be opened now: {error}", AGAIN_S) from error
                raise

    def _fail(self, error: DeviceLost) -> None:
        if not self._is_failing:
            self._is_failing = True
            self._start(self._let_go(error), self._tasks)

    async def _let_go(self, error: DeviceLost) -> None:
        """Let others have the graphs at once, and then say that this process must end.

        Nobody writes to a log that another has claimed, whatever this process still does.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LET_GO_S):
                await asyncio.gather(*(keeper.release() for keeper in self.graphs.values()))
        if not self.failed.done():
            self.failed.set_exception(error)

    def _on_cancel(self, held: Held, rows: list[int]) -> None:
        keeper = self.graphs.get(held.endpoint.subject.rpartition(".")[2])
        if keeper is not None:
            keeper.withdraw(held, rows)

    @staticmethod
    def _start(work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        among.add(task)
        task.add_done_callback(among.discard)

    def _details(self, operation: str) -> dict[str, Any]:
        return {"device": self._device.name, "graphs": sorted(self.graphs)}


@asynccontextmanager
async def _released_if_failed(lease: Lease) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        await lease.release()
        raise


async def _cancelled(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _stops() -> Moved:
    return Moved("this worker stops: ask again")


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
