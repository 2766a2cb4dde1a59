"""The SDK: agents, and what they ask of the bus."""

from .agent import Agent
from .app import App
from .bus import Bus, connect, open_transport, session
from .call import Call
from .context_watch import Change as ContextChange
from .handler import handler, on, on_context
from .matrix import Matrix
from .message import Message
from .models import Models
from .peer import Peer
from .stateful import Stateful
from .tensors import Handle

__all__ = [
    "Agent",
    "App",
    "Bus",
    "Call",
    "ContextChange",
    "Handle",
    "Matrix",
    "Message",
    "Models",
    "Peer",
    "Stateful",
    "connect",
    "handler",
    "on",
    "on_context",
    "open_transport",
    "session",
]
