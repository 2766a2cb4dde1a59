"""The SDK: what an agent asks of the bus."""

from .bus import Bus, connect, open_transport, session
from .matrix import Matrix
from .models import Models
from .tensors import Handle

__all__ = ["Bus", "Handle", "Matrix", "Models", "connect", "open_transport", "session"]
