"""What tests of agents need: a bus in memory, time that stands still, faults, and recorded traffic.

    async with testing.app(Summariser, retriever=FakeRetriever) as bus:
        answer = await bus.agents.get(Summariser).ask(Ask("…"))

docs/testing.md has an example of each.
"""

from .agents import app
from .clock import Clock, clock
from .network import Network
from .traffic import Replayed, replay

__all__ = ["Clock", "Network", "Replayed", "app", "clock", "replay"]
