"""Aikoryu: an event-driven async message bus for agents, with the GPU behind it.

    async with aikoryu.connect() as bus:
        vector = await bus.models.embed("The server is on fire.")
        product = await bus.matrix.matmul(a, b)

Importing it loads no GPU library.
"""

from .agents import Bus, connect
from .bus.errors import (
    BadColumn,
    BadFrame,
    BadParameter,
    BadValue,
    BadVersion,
    BusError,
    Busy,
    Closed,
    ConnectionFailed,
    Disconnected,
    EngineLost,
    Expired,
    NoWorker,
    OperationFailed,
    TooLarge,
)
from .bus.pending import RowsFailed
from .config import ConfigError, Settings
from .config import load as load_settings
from .gpu.operation import Operation, operation

__all__ = [
    "BadColumn",
    "BadFrame",
    "BadParameter",
    "BadValue",
    "BadVersion",
    "Bus",
    "BusError",
    "Busy",
    "Closed",
    "ConfigError",
    "ConnectionFailed",
    "Disconnected",
    "EngineLost",
    "Expired",
    "NoWorker",
    "Operation",
    "OperationFailed",
    "RowsFailed",
    "Settings",
    "TooLarge",
    "connect",
    "load_settings",
    "operation",
]
