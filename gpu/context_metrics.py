"""Context graphs as Prometheus metrics: what their keepers told last, when somebody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .context_figures import BUCKETS_S, GraphFigures, HostFigures

Graphs = Mapping[tuple[str, str], GraphFigures]
"""By name and device."""

_LABELS = ["graph", "device"]
_BOUNDS = [*map(str, BUCKETS_S), "+Inf"]
_COUNTERS = {
    "windows": "Windows applied",
    "rows": "Rows of callers applied",
    "swept_edges": "Edges that sweeps went along",
}
_GAUGES = {
    "push_cost": "What an edge costs in a push, in edges of a full sweep, by the rule that chooses between them",
    "residual": "Length of the longest residual after the last window",
    "epoch": "The last window applied",
    "waiting_rows": "Rows said and not in the log yet",
    "watchers": "Rows that wait for a change",
}


class ContextMetrics(Collector):
    """The graphs that a worker keeps, and whether a process keeps them.

    Args:
        figures: of each of its hosts; called in a scrape's thread.
    """

    def __init__(self, figures: Callable[[], Sequence[HostFigures]]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        hosts = self._figures()
        keepers = [keeper for host in hosts for keeper in host.keepers]
        up = {device: is_up for host in hosts for device, is_up in host.up.items()}
        kept, left_out = Counter[str](), Counter[str]()
        for keeper in keepers:
            kept[keeper.device] += keeper.graphs
            left_out[keeper.device] += keeper.graphs - len(keeper.told)
        yield _of_devices("keeper_up", "1 while a process keeps context graphs there", up)
        yield _of_devices("graphs", "Context graphs owned", kept)
        yield _of_devices("graphs_left_out", "Context graphs owned of which nothing more is told", left_out)
        # Of two processes on one device both may have told of a graph, and Prometheus takes nothing that is told twice.
        yield from _of_graphs({(graph.name, keeper.device): graph for keeper in keepers for graph in keeper.told})


def _of_graphs(graphs: Graphs) -> Iterable[Metric]:
    for name, text in _COUNTERS.items():
        counter = CounterMetricFamily(f"aikoryu_context_{name}", text, labels=_LABELS)
        for labels, graph in graphs.items():
            counter.add_metric(labels, getattr(graph, name))
        yield counter
    for name, text in _GAUGES.items():
        gauge = GaugeMetricFamily(f"aikoryu_context_{name}", text, labels=_LABELS)
        for labels, graph in graphs.items():
            if (value := getattr(graph, name)) is not None:
                gauge.add_metric(labels, value)
        yield gauge
    sweeps = CounterMetricFamily("aikoryu_context_sweeps", "Sweeps by kind: push or full", labels=[*_LABELS, "kind"])
    windows = HistogramMetricFamily(
        "aikoryu_context_window_seconds", "From taking a window's rows to their answers", labels=_LABELS
    )
    for labels, graph in graphs.items():
        sweeps.add_metric([*labels, "push"], graph.pushes)
        sweeps.add_metric([*labels, "full"], graph.fulls)
        windows.add_metric(labels, list(zip(_BOUNDS, accumulate(graph.waits), strict=True)), graph.waited_s)
    yield sweeps
    yield windows


def _of_devices(name: str, text: str, values: Mapping[str, float]) -> Metric:
    gauge = GaugeMetricFamily(f"aikoryu_context_{name}", text, labels=["device"])
    for device, value in values.items():
        gauge.add_metric([device], value)
    return gauge
