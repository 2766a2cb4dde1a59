"""An owner of context graphs for tests: the operations of docs/context.md, in plain NumPy."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from aikoryu.bus.columns import pack, unpack
from aikoryu.bus.errors import BadColumn, BadParameter, BadValue, BusError
from aikoryu.bus.frames import decode_parameters, row_error
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.service import Held, Service
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Transport

Array = NDArray[Any]


def _uint64(values: list[int]) -> Array:
    return np.array(values, np.uint64)


def _uint32(values: list[int]) -> Array:
    return np.array(values, np.uint32)


def _cosine(one: Array, other: Array) -> float:
    sizes = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / sizes if sizes else 0.0


def _float32(values: list[Any]) -> Array:
    return np.array(values, np.float32)


class FakeGraph:
    """What the log says of a graph: it outlives its owners.

    Attributes:
        stamps: (version, writer) of each agent, and of each link.
    """

    def __init__(self, dimension: int, alpha: float, epsilon: float) -> None:
        self.dimension = dimension
        self.alpha = alpha
        self.epsilon = epsilon
        self.epoch = 0
        self.own: dict[str, Array] = {}
        self.stamps: dict[Any, tuple[int, int]] = {}
        self.able: dict[str, tuple[int, float]] = {}
        self.weights: dict[tuple[str, str], float] = {}

    def hear(self, keys: list[Any], columns: dict[str, Any]) -> Array:
        """Keep the stamps of words, and say which of these hold now."""
        stamps = list(zip(columns["version"].tolist(), columns["writer"].tolist(), strict=True))
        for key, stamp in zip(keys, stamps, strict=True):
            self.stamps[key] = max(stamp, self.stamps.get(key, (0, 0)))
        return np.array([self.stamps[key] == stamp for key, stamp in zip(keys, stamps, strict=True)])

    def blended(self) -> dict[str, Array]:
        """Of everybody who put something or is linked, by the dense equation."""
        names = sorted({*self.own, *(name for link in self.weights for name in link)})
        place = {name: number for number, name in enumerate(names)}
        own = np.zeros((len(names), self.dimension), np.float32)
        weight = np.eye(len(names))
        for name, vector in self.own.items():
            own[place[name]] = vector
        for (source, target), value in self.weights.items():
            weight[place[target], place[source]] = value
        mixing = np.eye(len(names)) - (1 - self.alpha) * weight / weight.sum(1, keepdims=True)
        found = self.alpha * np.linalg.solve(mixing, own) if names else own
        return dict(zip(names, found.astype(np.float32), strict=True))


class Waiting(NamedTuple):
    """A row of a watch that has no answer yet."""

    held: Held
    row: int
    agent: str
    threshold: float
    cursor: int


class FakeOwner:
    """A worker's process that keeps whatever graph it is asked to open.

    Args:
        transport: its connection.
        log: graphs by name, shared by all owners.

    Attributes:
        asked: operation, columns and parameters of each frame, in order.
        waiting: of watches.
        refuse: raised by the next frames of these operations, one each.
    """

    def __init__(self, transport: Transport, log: dict[str, FakeGraph], name: str = "keeper") -> None:
        self.asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self.waiting: list[Waiting] = []
        self.refuse: list[tuple[str, BusError]] = []
        self.told: dict[tuple[str, str, int], Array] = {}
        self._log = log
        self._kept: set[str] = set()
        self._transport = transport
        self._service = Service(transport, Subjects(), name, reply_prefixes=("_INBOX",))
        self._service.on_cancel = self._on_cancel

    async def start(self) -> None:
        """Listen for graphs to be opened."""
        await self._service.start()
        await self._service.serve("context.open", partial(self._accept, "open", ""))

    async def keep(self, graph: str) -> None:
        """Own a graph."""
        self._kept.add(graph)
        for operation in ("put", "link", "get", "route", "watch", "links", "stats"):
            await self._service.serve(
                f"context.{operation}", partial(self._accept, operation, graph), endings=(f".{graph}",)
            )

    def die(self, memory: MemoryBus) -> None:
        """End without a word."""
        memory.drop_connection(self._transport)  # type: ignore[arg-type]

    def _accept(self, operation: str, graph: str, held: Held) -> None:
        request = held.request
        columns = {name: unpack(column, request.n) for name, column in request.cols.items()}
        parameters: dict[str, Any] = decode_parameters(request.p)
        self.asked.append((operation, columns, parameters))
        for number, (name, error) in enumerate(self.refuse):
            if name == operation:
                del self.refuse[number]
                raise error
        if operation == "open":
            held.ticket = asyncio.ensure_future(self._open(held, columns))
        elif operation == "watch":
            self._watch(held, graph, columns, parameters)
        else:
            answer = getattr(self, f"_{operation}")(self._log[graph], request.n, columns, **parameters)
            self._answer(held, answer)
            self._tell(graph)

    def _answer(self, held: Held, columns: dict[str, Any], first: int = 0) -> None:
        rows = len(next(iter(columns.values())))
        self._service.answer(held, [(first, rows)], {name: pack(values) for name, values in columns.items()}, [])

    async def _open(self, held: Held, columns: dict[str, Any]) -> None:
        name, dimension = columns["graph"][0], int(columns["dimension"][0])
        if name not in self._log:
            if not dimension:
                self._service.fail(held, BadParameter(f"graph {name} is not there"))
                return
            alpha, epsilon = float(columns["alpha"][0]) or 0.3, float(columns["epsilon"][0]) or 1e-3
            self._log[name] = FakeGraph(dimension, alpha, epsilon)
        if name not in self._kept:
            await self.keep(name)
        graph = self._log[name]
        number = {"epoch": _uint64([graph.epoch]), "dimension": _uint32([graph.dimension])}
        spec = {"alpha": _float32([graph.alpha]), "epsilon": _float32([graph.epsilon])}
        self._answer(held, {**number, **spec})

    def _put(self, graph: FakeGraph, rows: int, columns: dict[str, Any]) -> dict[str, Any]:
        if columns["vector"].shape[1] != graph.dimension:
            raise BadColumn(f"vectors are of {graph.dimension} numbers here")
        graph.epoch += 1
        applied = graph.hear(columns["agent"], columns)
        for row, name in enumerate(columns["agent"]):
            if applied[row]:
                graph.own[name] = columns["vector"][row].astype(np.float32)
                able, load = columns.get("capabilities"), columns.get("load")
                graph.able[name] = (0 if able is None else int(able[row]), 0.0 if load is None else float(load[row]))
        versions = _uint64([graph.stamps[name][0] for name in columns["agent"]])
        return {"epoch": np.full(rows, graph.epoch, "u8"), "applied": applied, "version": versions}

    def _link(self, graph: FakeGraph, rows: int, columns: dict[str, Any]) -> dict[str, Any]:
        graph.epoch += 1
        links = list(zip(columns["source"], columns["target"], strict=True))
        applied = graph.hear(links, columns)
        for row, link in enumerate(links):
            if applied[row]:
                graph.weights.pop(link, None)
                if columns["weight"][row]:
                    graph.weights[link] = float(columns["weight"][row])
        return {"epoch": np.full(rows, graph.epoch, "u8"), "applied": applied}

    def _get(self, graph: FakeGraph, rows: int, columns: dict[str, Any], what: str = "blended") -> dict[str, Any]:
        if "min_epoch" in columns and columns["min_epoch"].max() > graph.epoch:
            raise BadValue(f"min_epoch is beyond {graph.epoch}")
        found = graph.own if what == "own" else graph.blended()
        nothing = np.zeros(graph.dimension, np.float32)
        return {
            "epoch": np.full(rows, graph.epoch, "u8"),
            "vector": np.stack([found.get(name, nothing) for name in columns["agent"]]),
            "version": _uint64([graph.stamps.get(name, (0, 0))[0] for name in columns["agent"]]),
            "residual": np.full(rows, graph.epsilon / 2, "f4"),
            "age_ms": np.full(rows, 250, "f4"),
        }

    def _route(
        self,
        graph: FakeGraph,
        rows: int,
        columns: dict[str, Any],
        k: int = 16,
        load_weight: float = 0.0,
        what: str = "blended",
    ) -> dict[str, Any]:
        found = graph.own if what == "own" else graph.blended()
        agents, scores = [], np.full((rows, k), -np.inf, np.float32)
        for row, query in enumerate(columns["query"]):
            need = int(columns["needs"][row]) if "needs" in columns else 0
            able = [name for name, (bits, _) in graph.able.items() if bits & need == need]
            ranked = sorted(
                ((_cosine(found[n], query) - load_weight * graph.able[n][1], n) for n in able), reverse=True
            )
            agents.append("\n".join(name for _, name in ranked[:k]))
            scores[row, : len(ranked[:k])] = [score for score, _ in ranked[:k]]
        return {"epoch": np.full(rows, graph.epoch, "u8"), "agents": agents, "scores": scores}

    def _links(self, graph: FakeGraph, rows: int, columns: dict[str, Any]) -> dict[str, Any]:
        heard, hearers = [], []
        for name in columns["agent"]:
            heard.append(msgpack.packb([[s, w] for (s, t), w in graph.weights.items() if t == name]))
            hearers.append(msgpack.packb([[t, w] for (s, t), w in graph.weights.items() if s == name]))
        return {"heard": heard, "hearers": hearers}

    def _stats(self, graph: FakeGraph, rows: int, columns: dict[str, Any]) -> dict[str, Any]:
        figures = {"agents": len(graph.own), "edges": len(graph.weights), "epoch": graph.epoch, "device": "cpu"}
        figures["log_last"] = graph.epoch
        more = {"dimension": graph.dimension, "alpha": graph.alpha, "epsilon": graph.epsilon, "residual": 0.0005}
        return {"stats": [json.dumps({**figures, **more})] * rows}

    def _watch(self, held: Held, graph: str, columns: dict[str, Any], parameters: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        for row, name in enumerate(columns["agent"]):
            cursor, threshold = int(columns["cursor"][row]), float(columns["threshold"][row])
            waiting = Waiting(held, row, name, threshold, cursor)
            self.waiting.append(waiting)
            loop.call_later(parameters["wait_ms"] / 1000, self._end_wait, waiting, graph)
        self._tell(graph)

    def _end_wait(self, waiting: Waiting, graph: str) -> None:
        if waiting in self.waiting:
            self.waiting.remove(waiting)
            self._answer_watch(waiting, self._log[graph], changed=False, moved=0.0)

    def _tell(self, name: str) -> None:
        graph, blended = self._log[name], self._log[name].blended()
        for waiting in list(self.waiting):
            now = blended.get(waiting.agent)
            # Who has been told nothing knows zeros; a cursor of another owner's is answered at once.
            known = self.told.get((name, waiting.agent, waiting.cursor))
            if now is None:
                continue
            moved = float(np.linalg.norm(now - (0 if known is None else known)))
            if moved > waiting.threshold or (known is None and waiting.cursor):
                self.waiting.remove(waiting)
                self.told[name, waiting.agent, graph.epoch] = now
                self._answer_watch(waiting, graph, changed=True, moved=moved)

    def _answer_watch(self, waiting: Waiting, graph: FakeGraph, *, changed: bool, moved: float) -> None:
        nothing = np.zeros(graph.dimension, np.float32)
        columns: dict[str, Any] = {
            "changed": np.array([changed]),
            "epoch": _uint64([graph.epoch if changed else waiting.cursor]),
            "version": _uint64([graph.stamps.get(waiting.agent, (0, 0))[0]]),
            "vector": _float32([graph.blended().get(waiting.agent, nothing)]),
            "moved": _float32([moved]),
        }
        self._answer(waiting.held, columns, waiting.row)

    def _on_cancel(self, held: Held, rows: list[int]) -> None:
        gone = [each for each in self.waiting if each.held is held and (not rows or each.row in rows)]
        for each in gone:
            self.waiting.remove(each)
            self._service.drop(held, 1)

    def fail(self, waiting: Waiting, error: BusError) -> None:
        """Answer a watch with an error."""
        self.waiting.remove(waiting)
        self._service.answer(waiting.held, [], {}, [row_error(error, waiting.row, 1)])
