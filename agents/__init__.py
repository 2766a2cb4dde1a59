"""The SDK: what an agent asks of the bus."""

from .bus import Bus, connect, open_transport, session
from .matrix import Matrix
from .models import Models

__all__ = ["Bus", "Matrix", "Models", "connect", "open_transport", "session"]
