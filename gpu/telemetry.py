"""Telemetry: what every stage of a batch took, as Prometheus metrics and as the figures discovery reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .context_figures import HostFigures
from .context_metrics import ContextMetrics
from .fallback import Fallback
from .job import Done
from .nvml import READINGS, Health
from .plan import Place, Plan
from .planner import Planner

if TYPE_CHECKING:
    from ..bus.job_runs import JobRuns
    from ..bus.service import Service
    from .engine import Engine

_SECONDS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ROWS = tuple(float(1 << n) for n in range(14))
_OF_ENGINES = {
    "engine_up": "1 while the engine takes batches",
    "engine_restarts": "Times the engine was lost and came back",
    "device_allocated_bytes": "Memory of the device that the engine's tensors use",
    "device_reserved_bytes": "Memory of the device that the engine holds, in use or kept for the next batch",
    "residents_device_bytes": "Resident tensors on the device",
    "residents_device_budget_bytes": "How much of the device resident tensors may take",
    "residents_device_count": "Resident tensors that are on the device",
    "residents_host_bytes": "Origins of resident tensors on the host",
    "residents_host_budget_bytes": "How much of the host origins may take",
    "residents_count": "Resident tensors in all",
    "residents_hits": "Uses of a resident tensor that was on the device",
    "residents_loads": "Uses of a resident tensor that was copied to the device",
    "residents_evictions": "Resident tensors dropped from the device for others",
}


class Telemetry:
    """The worker's metrics; observed once a batch, never once a row.

    Attributes:
        registry: Prometheus registry to expose.
        batches, rows: run so far, by operation.
        largest: largest batch so far, by operation, rows.
        spare_rows: of `rows` those that were run on the spare.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.batches: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        self.largest: dict[str, int] = {}
        self.spare_rows: dict[str, int] = {}
        self._spare: Place | None = None
        self._stages: dict[str, _Stages] = {}
        label = ["operation"]

        def seconds(stage: str, text: str) -> Histogram:
            return Histogram(f"aikoryu_{stage}_seconds", text, label, buckets=_SECONDS, registry=self.registry)

        self._queue = seconds("queue", "From arrival of a batch's oldest row to its dispatch")
        self._window = seconds("window", "From arrival of a batch's first row to that of its last")
        self._staging = seconds("staging", "Copying a batch's rows into the slab, and handing it over")
        self._device = seconds("device", "Running a batch on the engine")
        self._reply = seconds("reply", "Encoding a batch's answers")
        self._batch_rows = Histogram(
            "aikoryu_batch_rows", "Rows of a batch", label, buckets=_ROWS, registry=self.registry
        )
        self._dropped = Counter(
            "aikoryu_rows_dropped", "Rows dropped before they ran", ["reason"], registry=self.registry
        )

        self._again = Counter(
            "aikoryu_rows_run_again",
            "Rows run again after their batch came to nothing",
            ["reason"],
            registry=self.registry,
        )

    def watch(self, planner: Planner, service: Service, engines: Sequence[Engine]) -> None:
        """Read queue lengths, rejections and the engines' states whenever somebody asks.

        Args:
            planner: its places are the engines', in the same order.
            service: where frames come from.
            engines: the device, and the spare behind it.
        """

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"aikoryu_{name}", text, registry=self.registry)

        gauge("lanes", "Lanes known").set_function(lambda: len(planner.lanes))
        gauge("waiting_rows", "Rows that wait").set_function(lambda: planner.waiting_rows)
        gauge("waiting_bytes", "Bytes of the rows that wait").set_function(lambda: planner.waiting_bytes)
        gauge("running_batches", "Batches the engines have").set_function(lambda: planner.running)
        gauge("held_frames", "Frames not answered whole").set_function(lambda: len(service.held))
        self.registry.register(
            _Counts("aikoryu_frames_rejected", "Frames refused, by error code", lambda: service.rejected, "code")
        )
        self.registry.register(_Engines(engines, planner.places))
        if engines[0].name.startswith("cuda"):
            readings = {name: text for name, (text, _) in READINGS.items()}
            self.registry.register(_Figures(Health(engines[0].name).read, readings))

    def watch_fallback(self, fallback: Fallback) -> None:
        """Read the breakers' states whenever somebody asks, and tell the spare's rows from others."""
        self._spare = fallback.spare
        self.registry.register(
            _Counts(
                "aikoryu_breaker_opened",
                "Times an operation was kept from the device",
                lambda: {name: breaker.opened for name, breaker in list(fallback.breakers.items())},
                "operation",
            )
        )
        self.registry.register(_BreakerStates(fallback))

    def watch_connection(self, statistics: Callable[[], Mapping[str, int]]) -> None:
        """Read what happened to the connection whenever somebody asks: reconnects, errors, slow consumers."""
        self.registry.register(_Counts("aikoryu_connection_events", "What happened to the connection", statistics))

    def watch_jobs(self, runs: JobRuns) -> None:
        """Read what became of durable jobs whenever somebody asks."""
        self.registry.register(_Jobs(runs))

    def watch_contexts(self, figures: Callable[[], Sequence[HostFigures]]) -> None:
        """Read what is told of context graphs whenever somebody asks.

        Args:
            figures: of who keeps the worker's; called in a scrape's thread.
        """
        self.registry.register(ContextMetrics(figures))

    def on_start(self, operation: str, plan: Plan, now: float, staged: float) -> None:
        """A batch was handed to the engine at `staged`; its dispatch began at `now`."""
        self.batches[operation] = self.batches.get(operation, 0) + 1
        self.rows[operation] = self.rows.get(operation, 0) + plan.rows
        self.largest[operation] = max(self.largest.get(operation, 0), plan.rows)
        if plan.place is self._spare:
            self.spare_rows[operation] = self.spare_rows.get(operation, 0) + plan.rows
        first, last = plan.spans[0].ticket.arrived, plan.spans[-1].ticket.arrived
        stages = self._stages_of(operation)
        stages.queue.observe(now - first)
        stages.window.observe(max(0.0, last - first))
        stages.staging.observe(staged - now)
        stages.batch_rows.observe(plan.rows)

    def on_done(self, operation: str, plan: Plan, done: Done, reply_s: float) -> None:
        """A batch was run and answered."""
        stages = self._stages_of(operation)
        stages.device.observe(done.run_us / 1e6)
        stages.reply.observe(reply_s)

    def on_again(self, reason: str, rows: int) -> None:
        """Rows whose batch came to nothing are run again."""
        self._again.labels(reason).inc(rows)

    def on_drop(self, reason: str, rows: int) -> None:
        """Rows were dropped before they ran."""
        self._dropped.labels(reason).inc(rows)

    def _stages_of(self, operation: str) -> _Stages:
        stages = self._stages.get(operation)
        if stages is None:
            histograms = (self._queue, self._window, self._staging, self._device, self._reply, self._batch_rows)
            stages = self._stages[operation] = _Stages(*(each.labels(operation) for each in histograms))
        return stages


class _Stages(NamedTuple):
    """One operation's histograms; looking labels up for each batch would cost more than observing."""

    queue: Histogram
    window: Histogram
    staging: Histogram
    device: Histogram
    reply: Histogram
    batch_rows: Histogram


class _BreakerStates(Collector):
    """State of each breaker as a number: 0 closed, 1 open, 2 half open."""

    def __init__(self, fallback: Fallback) -> None:
        self._fallback = fallback

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("aikoryu_breaker_state", "0 closed, 1 open, 2 half open", labels=["operation"])
        for name, breaker in list(self._fallback.breakers.items()):
            family.add_metric([name], breaker.state.value)
        yield family


class _Counts(Collector):
    """Counts kept elsewhere, by kind, read when somebody asks."""

    def __init__(self, name: str, text: str, counts: Callable[[], Mapping[str, int]], label: str = "kind") -> None:
        self._name = name
        self._text = text
        self._counts = counts
        self._label = label

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=[self._label])
        for kind, count in list(self._counts().items()):  # the loop may add some while a scrape's thread reads
            family.add_metric([kind], count)
        yield family


class _Engines(Collector):
    """Each engine's state, and the figures that it has told of itself."""

    def __init__(self, engines: Sequence[Engine], places: Sequence[Place]) -> None:
        self._engines = engines
        self._places = places

    def collect(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for engine, place in zip(self._engines, self._places, strict=True):
            own = {"engine_up": float(place.slots > 0), "engine_restarts": float(engine.restarts)}
            for name, value in (own | dict(engine.figures)).items():
                if name not in families:
                    text = _OF_ENGINES.get(name, "Reported by the engine")
                    families[name] = GaugeMetricFamily(f"aikoryu_{name}", text, labels=["engine"])
                families[name].add_metric([engine.name], value)
        return families.values()


class _Jobs(Collector):
    """Durable jobs that came, and what became of them."""

    def __init__(self, runs: JobRuns) -> None:
        self._runs = runs

    def collect(self) -> Iterable[Metric]:
        runs = self._runs
        yield CounterMetricFamily("aikoryu_jobs_taken", "Jobs that came", value=runs.taken)
        yield CounterMetricFamily("aikoryu_jobs_stored", "Jobs whose result was stored", value=runs.stored)
        yield CounterMetricFamily("aikoryu_jobs_known", "Jobs whose result was there already", value=runs.known)
        yield CounterMetricFamily("aikoryu_jobs_retried", "Jobs given back to be tried again", value=runs.retried)
        yield CounterMetricFamily("aikoryu_jobs_dead_lettered", "Jobs given up", value=runs.buried)
        yield GaugeMetricFamily("aikoryu_jobs_in_flight", "Jobs that this worker has", value=runs.in_flight)


class _Figures(Collector):
    """Figures kept elsewhere, by the metric's name without its prefix, read when somebody asks."""

    def __init__(self, figures: Callable[[], Mapping[str, float]], texts: Mapping[str, str]) -> None:
        self._figures = figures
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        for name, value in self._figures().items():
            yield GaugeMetricFamily(f"aikoryu_{name}", self._texts[name], value)
