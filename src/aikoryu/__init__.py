"""Aikoryu: an event-driven async message bus for agents, with the GPU behind it.

    async with aikoryu.connect() as bus:
        vector = await bus.models.embed("The server is on fire.")
        product = await bus.matrix.matmul(a, b)

Importing it loads next to nothing; what a name needs is loaded when it is first asked for, and no GPU library then.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .bus.errors import (
    BadColumn,
    BadFrame,
    BadMessage,
    BadParameter,
    BadValue,
    BadVersion,
    BusError,
    Busy,
    CallCycle,
    Closed,
    ConnectionFailed,
    Declined,
    Disconnected,
    EngineLost,
    Expired,
    Forgotten,
    HandlerFailed,
    Moved,
    NoHandler,
    NoTensor,
    NotOwner,
    NotWritten,
    NoWorker,
    OperationFailed,
    OutOfStep,
    TooLarge,
    WrongKind,
)

if TYPE_CHECKING:
    from .agents import (
        Agent,
        App,
        Bus,
        Call,
        ContextChange,
        Handle,
        Message,
        Stateful,
        connect,
        handler,
        on,
        on_context,
    )
    from .agents.jobs import Job, NoResult
    from .bus.pending import RowsFailed
    from .config import ConfigError, Settings
    from .config import load as load_settings
    from .gpu.operation import Operation, operation

__all__ = [
    "Agent",
    "App",
    "BadColumn",
    "BadFrame",
    "BadMessage",
    "BadParameter",
    "BadValue",
    "BadVersion",
    "Bus",
    "BusError",
    "Busy",
    "Call",
    "CallCycle",
    "Closed",
    "ConfigError",
    "ConnectionFailed",
    "ContextChange",
    "Declined",
    "Disconnected",
    "EngineLost",
    "Expired",
    "Forgotten",
    "Handle",
    "HandlerFailed",
    "Job",
    "Message",
    "Moved",
    "NoHandler",
    "NoResult",
    "NoTensor",
    "NoWorker",
    "NotOwner",
    "NotWritten",
    "Operation",
    "OperationFailed",
    "OutOfStep",
    "RowsFailed",
    "Settings",
    "Stateful",
    "TooLarge",
    "WrongKind",
    "connect",
    "handler",
    "load_settings",
    "on",
    "on_context",
    "operation",
]

_LATER = {
    "Agent": ("agents", "Agent"),
    "App": ("agents", "App"),
    "Bus": ("agents", "Bus"),
    "Call": ("agents", "Call"),
    "ConfigError": ("config", "ConfigError"),
    "ContextChange": ("agents", "ContextChange"),
    "Handle": ("agents", "Handle"),
    "Job": ("agents.jobs", "Job"),
    "Message": ("agents", "Message"),
    "NoResult": ("agents.jobs", "NoResult"),
    "Operation": ("gpu.operation", "Operation"),
    "RowsFailed": ("bus.pending", "RowsFailed"),
    "Settings": ("config", "Settings"),
    "Stateful": ("agents", "Stateful"),
    "connect": ("agents", "connect"),
    "handler": ("agents", "handler"),
    "load_settings": ("config", "load"),
    "on": ("agents", "on"),
    "on_context": ("agents", "on_context"),
    "operation": ("gpu.operation", "operation"),
}

if not TYPE_CHECKING:  # a checker would take every name for one of ours

    def __getattr__(name):
        """Load a name of `_LATER`, and keep it."""
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, attribute = _LATER[name]
        value = globals()[name] = getattr(import_module(f".{module}", __name__), attribute)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
