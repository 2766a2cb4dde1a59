"""What can be tuned: frozen settings, and how logs are written."""

from .logging import configure as configure_logging
from .logging import keep_off_stdout
from .settings import (
    BatchSettings,
    BreakerSettings,
    BusSettings,
    ContextSettings,
    CpuSettings,
    CudaSettings,
    FaultSettings,
    JobSettings,
    LogSettings,
    ModelSettings,
    NatsSettings,
    ResidentSettings,
    ServerSettings,
    Settings,
    WorkerSettings,
    describe,
    load,
)
from .sources import ConfigError
from .version import VERSION

__all__ = [
    "VERSION",
    "BatchSettings",
    "BreakerSettings",
    "BusSettings",
    "ConfigError",
    "ContextSettings",
    "CpuSettings",
    "CudaSettings",
    "FaultSettings",
    "JobSettings",
    "LogSettings",
    "ModelSettings",
    "NatsSettings",
    "ResidentSettings",
    "ServerSettings",
    "Settings",
    "WorkerSettings",
    "configure_logging",
    "describe",
    "keep_off_stdout",
    "load",
]
