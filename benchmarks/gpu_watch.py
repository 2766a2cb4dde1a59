"""How busy the GPU is while something is measured: utilization, SM activity, power, energy and memory, by NVML."""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from aikoryu.gpu.nvml import visible

EVERY_S = 0.1
SETTLE = 5  # first samples left out: the driver's own window reaches back before the load


class Watch:
    """What was seen; figures are empty where there is no GPU to be asked.

    Attributes:
        figures: `gpu_busy` (share of time in which a kernel ran, as NVML has it), `sm_active` (of SMs, where the driver
            counts it), `gpu_watts`, `gpu_joules`, `memory_used_bytes` (the most) and `memory_before_bytes`.
    """

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}


@contextlib.contextmanager
def watching(device: str, every_s: float = EVERY_S) -> Iterator[Watch]:
    """Sample the first GPU until the block ends."""
    watch = Watch()
    gpus = visible() if device != "cpu" else []
    if not gpus:
        yield watch
        return
    import pynvml as nvml

    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByUUID(gpus[0].uuid)
    seen: dict[str, list[float]] = {"busy": [], "watts": [], "memory": []}
    ended = threading.Event()
    before = float(nvml.nvmlDeviceGetMemoryInfo(handle).used)
    joules = _joules(nvml, handle)
    counters = _Counters(nvml, handle)
    thread = threading.Thread(target=_sample, args=(nvml, handle, seen, ended, every_s))
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()
        busy, watts = seen["busy"][SETTLE:], seen["watts"][SETTLE:]
        if busy:
            watch.figures["gpu_busy"] = round(statistics.mean(busy), 4)
        if watts:
            watch.figures["gpu_watts"] = round(statistics.mean(watts), 1)
        if joules is not None:
            watch.figures["gpu_joules"] = round((_joules(nvml, handle) or joules) - joules, 2)
        watch.figures |= counters.read()
        watch.figures |= {"memory_used_bytes": max([before, *seen["memory"]]), "memory_before_bytes": before}
        nvml.nvmlShutdown()


def _sample(nvml: Any, handle: Any, seen: dict[str, list[float]], ended: threading.Event, every_s: float) -> None:
    while not ended.wait(every_s):
        with suppress(nvml.NVMLError):
            seen["busy"].append(nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        with suppress(nvml.NVMLError):
            seen["watts"].append(nvml.nvmlDeviceGetPowerUsage(handle) / 1e3)
        with suppress(nvml.NVMLError):
            seen["memory"].append(float(nvml.nvmlDeviceGetMemoryInfo(handle).used))


class _Counters:
    """SM activity between two reads of the driver's counters, which Hopper and newer GPUs have (GPM)."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._first = self._take()

    def read(self) -> dict[str, float]:
        """`sm_active`, where it can be had."""
        nvml, last = self._nvml, self._take()
        if self._first is None or last is None:
            return {}
        with suppress(nvml.NVMLError, AttributeError):
            asked = nvml.c_nvmlGpmMetricsGet_t()
            asked.version = nvml.NVML_GPM_METRICS_GET_VERSION
            asked.numMetrics = 1
            asked.sample1, asked.sample2 = self._first, last
            asked.metrics[0].metricId = nvml.NVML_GPM_METRIC_SM_UTIL
            nvml.nvmlGpmMetricsGet(asked)
            for sample in (self._first, last):
                nvml.nvmlGpmSampleFree(sample)
            if asked.metrics[0].nvmlReturn == nvml.NVML_SUCCESS:
                return {"sm_active": round(float(asked.metrics[0].value) / 100, 4)}
        return {}

    def _take(self) -> Any:
        nvml = self._nvml
        with suppress(nvml.NVMLError, AttributeError):
            sample = nvml.nvmlGpmSampleAlloc()
            nvml.nvmlGpmSampleGet(self._handle, sample)
            return sample
        return None


def _joules(nvml: Any, handle: Any) -> float | None:
    with suppress(nvml.NVMLError):
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    return None
