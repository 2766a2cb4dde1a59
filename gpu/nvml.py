"""NVML: which GPUs there are and how they are, asked of the driver without loading CUDA."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

FRESH_S = 1.0

READINGS: Mapping[str, tuple[str, Callable[[Any, Any], float]]] = {
    "gpu_busy_ratio": (
        "Share of the driver's last sample period in which a kernel ran, 0 to 1",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    "gpu_memory_used_bytes": (
        "Memory of the GPU in use by all processes",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    "gpu_temperature_celsius": (
        "Temperature of the GPU",
        lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    ),
    "gpu_power_watts": ("Power that the GPU draws", lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3),
    "gpu_energy_joules": (
        "Energy that the GPU has used since its driver was loaded",
        lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3,
    ),
    "gpu_uncorrected_errors": (
        "Memory errors since the last reset that ECC could not correct",
        lambda nvml, gpu: nvml.nvmlDeviceGetTotalEccErrors(
            gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
    ),
}
"""What can be asked of a GPU: its meaning, and how; named as its metric, which begins with `aikoryu_`."""


class Gpu(NamedTuple):
    """A GPU that a CUDA process here would see.

    Attributes:
        device: what torch calls it, `cuda:0`.
        uuid: what the driver calls it, whatever is visible.
        name: of the product.
        memory_bytes: all of its memory.
        capability: compute capability, (major, minor).
    """

    device: str
    uuid: str
    name: str
    memory_bytes: int
    capability: tuple[int, int]


def visible(environ: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in the order of their PCI addresses; none without a driver."""
    with _session() as nvml:
        if nvml is None:
            return []
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            with suppress(nvml.NVMLError):  # one that has failed cannot be asked, and CUDA leaves it out
                found.append(_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
        chosen = select([gpu.uuid for gpu in found], environ.get("CUDA_VISIBLE_DEVICES"))
        return [found[index]._replace(device=f"cuda:{number}") for number, index in enumerate(chosen)]


def _gpu(nvml: Any, handle: Any) -> Gpu:
    """What the driver says of a GPU; what torch would call it is not known yet."""
    return Gpu(
        "",
        _text(nvml.nvmlDeviceGetUUID(handle)),
        _text(nvml.nvmlDeviceGetName(handle)),
        int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
    )


def select(uuids: list[str], wanted: str | None) -> list[int]:
    """Which of the GPUs CUDA would show.

    Args:
        uuids: of all GPUs, in PCI order.
        wanted: CUDA_VISIBLE_DEVICES: numbers or beginnings of UUIDs; what follows one that does not exist is ignored,
            as CUDA does. None: all.

    Returns:
        Positions in `uuids`, in the order CUDA counts them.
    """
    if wanted is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for item in wanted.split(","):
        item = item.strip()
        if item.isdecimal() and int(item) < len(uuids):
            index = int(item)
        else:
            matches = [number for number, uuid in enumerate(uuids) if item and uuid.startswith(item)]
            if len(matches) != 1:
                break
            (index,) = matches
        if index in chosen:  # CUDA shows none at all then
            return []
        chosen.append(index)
    return chosen


class Health:
    """How one GPU is; the driver is asked at most once a second, and stays open in between.

    Args:
        device: what torch calls it, `cuda:0`.
        clock: s.
    """

    def __init__(self, device: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._device = device
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at = -math.inf
        self._figures: Mapping[str, float] = {}
        self._driver: tuple[Any, Any] | None = None

    def read(self) -> Mapping[str, float]:
        """Figures by their names in `READINGS`; those that the driver does not give are left out."""
        with self._lock:
            now = self._clock()
            if now - self._read_at >= FRESH_S:
                self._read_at = now
                self._driver = self._driver or self._open()
                self._figures = self._ask(*self._driver) if self._driver else {}
            return self._figures

    def _open(self) -> tuple[Any, Any] | None:
        """The library and the GPU's handle; None where there is none."""
        uuid = next((gpu.uuid for gpu in visible() if gpu.device == self._device), None)
        nvml = _library() if uuid else None
        return (nvml, nvml.nvmlDeviceGetHandleByUUID(uuid)) if nvml else None

    def _ask(self, nvml: Any, gpu: Any) -> Mapping[str, float]:
        figures = {}
        for name, (_, reading) in READINGS.items():
            with suppress(nvml.NVMLError):
                figures[name] = float(reading(nvml, gpu))
        return figures


@contextmanager
def _session() -> Iterator[Any]:
    """The library, or None where it or the driver is missing."""
    nvml = _library()
    try:
        yield nvml
    finally:
        if nvml is not None:
            nvml.nvmlShutdown()


def _library() -> Any:
    """The library, opened once more; None where it or the driver is missing."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
