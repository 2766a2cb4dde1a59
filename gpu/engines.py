"""The engines of a worker, and who keeps its context graphs, as the settings say."""

from __future__ import annotations

from ..config import Settings
from .context_host import ContextHost
from .device import threads_of
from .directory import WorkerDirectory
from .engine import EngineSpec
from .host import ChildEngine
from .nvml import visible
from .registry import Catalogue
from .residents import ResidentsSpec

SLAB_SLACK_BYTES = 1 << 20  # alignment


def catalogue_of(settings: Settings, directory: WorkerDirectory | None = None) -> Catalogue:
    """What the settings say to load.

    Args:
        settings: all groups.
        directory: the worker's own, which its engines share; without one each keeps tensors for itself.
    """
    kept = settings.residents
    path = str(directory.path) if directory is not None else ""
    residents = ResidentsSpec(path, kept.device_bytes, kept.host_bytes, kept.ttl_s)
    return Catalogue(settings.models.embed, settings.models.directory, settings.worker.operations, residents)


def own_engines(settings: Settings, max_payload: int, directory: WorkerDirectory | None) -> list[ChildEngine]:
    """Engines for one front alone: of the first device of the settings, and its spare."""
    device, room = devices_of(settings)[0], slab_bytes(settings, max_payload)
    spec = engine_spec(settings, device, directory)
    engines = [ChildEngine(spec, slots_of(settings, device), room, settings.worker.reserve)]
    engines += [ChildEngine(each, settings.cpu.slots, room) for each in spare_specs(settings, directory)]
    return engines


def devices_of(settings: Settings) -> list[str]:
    """The devices the settings ask for, at least one."""
    if settings.worker.device == "auto":
        return [gpu.device for gpu in visible()] or ["cpu"]
    return settings.worker.device.split(",")


def spare_specs(settings: Settings, directory: WorkerDirectory | None) -> list[EngineSpec]:
    """The engine that stands in for the others, if there is one."""
    spare, behind_cpu = settings.worker.spare, devices_of(settings) == ["cpu"]
    if spare == "none" or (spare == "auto" and behind_cpu):
        return []
    return [engine_spec(settings, "cpu", directory, "cpu-spare" if behind_cpu else "")]


def context_hosts(settings: Settings) -> list[ContextHost]:
    """One for a worker, on the first of its devices; none if it keeps no graphs."""
    return [ContextHost(settings, devices_of(settings)[0])] if settings.context.enabled else []


def engine_spec(
    settings: Settings, device: str, directory: WorkerDirectory | None = None, name: str = ""
) -> EngineSpec:
    """The engine of a device as the settings say."""
    streams = 1 if device == "cpu" else settings.cuda.streams
    catalogue = catalogue_of(settings, directory)
    return EngineSpec(device, threads_of(settings.cpu), streams, catalogue, settings.log, name, settings.faults.enabled)


def slots_of(settings: Settings, device: str) -> int:
    """Batches that a front hands over to an engine of the device at once."""
    return settings.cpu.slots if device == "cpu" else settings.cuda.slots


def slab_bytes(settings: Settings, max_payload: int) -> int:
    """Size of a slab that holds any batch the settings allow, and its answer.

    Args:
        settings: all groups.
        max_payload: largest message, bytes.
    """
    batch = settings.batch
    # Rows of variable width count as their frame's mean, so the frames cut at a batch's two ends may weigh more.
    cut_bytes = 2 * min(batch.max_bytes, max_payload)
    return 2 * batch.max_bytes + cut_bytes + batch.max_rows + SLAB_SLACK_BYTES
