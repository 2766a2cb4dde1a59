"""NVML: which GPUs there are and how they are, asked of the driver without loading CUDA."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple


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
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            found.append((_text(nvml.nvmlDeviceGetUUID(handle)), handle))
        chosen = select([uuid for uuid, _ in found], environ.get("CUDA_VISIBLE_DEVICES"))
        return [
            Gpu(
                f"cuda:{number}",
                found[index][0],
                _text(nvml.nvmlDeviceGetName(found[index][1])),
                int(nvml.nvmlDeviceGetMemoryInfo(found[index][1]).total),
                tuple(nvml.nvmlDeviceGetCudaComputeCapability(found[index][1])),
            )
            for number, index in enumerate(chosen)
        ]


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
        if item.isdigit() and int(item) < len(uuids):
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
    """How one GPU is, read when somebody asks."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid

    def read(self) -> dict[str, float]:
        """Figures by name of the metric; those that the driver does not give are left out."""
        with _session() as nvml:
            if nvml is None:
                return {}
            handle = nvml.nvmlDeviceGetHandleByUUID(self._uuid)
            figures: dict[str, float] = {}
            with suppress(nvml.NVMLError):
                use = nvml.nvmlDeviceGetUtilizationRates(handle)
                figures["gpu_busy_ratio"] = use.gpu / 100
            with suppress(nvml.NVMLError):
                figures["gpu_memory_used_bytes"] = float(nvml.nvmlDeviceGetMemoryInfo(handle).used)
            with suppress(nvml.NVMLError):
                figures["gpu_temperature_celsius"] = float(
                    nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
                )
            with suppress(nvml.NVMLError):
                figures["gpu_power_watts"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1e3
            with suppress(nvml.NVMLError):
                figures["gpu_energy_joules"] = nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
            with suppress(nvml.NVMLError):
                figures["gpu_uncorrected_errors"] = float(
                    nvml.nvmlDeviceGetTotalEccErrors(
                        handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
                    )
                )
            return figures


@contextmanager
def _session() -> Iterator[Any]:
    """The library, or None where it or the driver is missing."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
