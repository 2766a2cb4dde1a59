"""The demo's agents: each embeds sentences of its own and multiplies matrices, and checks every answer it gets."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
import numpy as np

from ..agents import Bus, connect
from ..bus.columns import Array
from ..bus.errors import BusError
from ..config import Settings, configure_logging
from .demo_process import be_child, tell

SHAPES = ((8, 8, 8), (32, 16, 32), (64, 64, 64))
"""(i, k, j) of the products an agent asks for; each is a lane of its own."""
SENTENCES = 8
"""Sentences an agent has."""
PRODUCTS = 8
"""Products an agent asks for after each sentence."""
COSINE = 0.9999
"""Least similarity of an embedding with its reference: float32, summed in another order."""

MATMUL = "matrix.matmul"


class AgentsTask(msgspec.Struct):
    """What the agents of one process do.

    Attributes:
        settings: how to reach the bus.
        seconds: when they ask for nothing more.
        agents: their numbers.
        sentences: those of all agents of the demo, `SENTENCES` each; they begin again when there are too few.
        model: what embeds them; empty if nothing does.
        reference: `.npy` file of their embeddings, (sentences, d) float32.
    """

    settings: Settings
    seconds: float
    agents: list[int]
    sentences: list[str]
    model: str
    reference: str


class Tally(msgspec.Struct):
    """What came of the calls of one operation.

    Attributes:
        calls, answered: calls made, and those that got an answer; each answer is checked.
        mismatches: answers that are wrong.
        latencies_us: from the call to its answer, µs.
        error: why some call got no answer.
    """

    calls: int = 0
    mismatches: int = 0
    latencies_us: list[int] = []
    error: str = ""

    @property
    def answered(self) -> int:
        return len(self.latencies_us)


class Agents:
    """The agents of this process, and what they saw."""

    def __init__(self, task: AgentsTask, bus: Bus, asked: asyncio.Event) -> None:
        self.tallies = {MATMUL: Tally()}
        self._task = task
        self._bus = bus
        self._asked = asked
        self._until = time.monotonic() + task.seconds
        if task.model:
            self._embed = self.tallies[f"models.embed.{task.model}"] = Tally()
            self._reference = np.load(task.reference, mmap_mode="r")

    async def run(self) -> None:
        """All agents at once, until the time is over."""
        await asyncio.gather(*map(self._agent, self._task.agents))

    async def _agent(self, number: int) -> None:
        """Ask until the time is over; an agent that gets no answer asks no more."""
        random = np.random.default_rng(number)
        with suppress(_Over):
            for turn in itertools.count():
                if self._task.model:
                    await self._embed_one((number * SENTENCES + turn % SENTENCES) % len(self._task.sentences))
                for shape in random.integers(len(SHAPES), size=PRODUCTS):
                    await self._multiply(random, *SHAPES[shape])

    async def _embed_one(self, sentence: int) -> None:
        text = self._task.sentences[sentence]
        vector = await self._ask(self._embed, lambda: self._bus.models.embed(text, model=self._task.model))
        if not same_direction(vector, self._reference[sentence]):
            self._embed.mismatches += 1

    async def _multiply(self, random: np.random.Generator, i: int, k: int, j: int) -> None:
        a, b = random.uniform(-1, 1, (i, k)).astype(np.float32), random.uniform(-1, 1, (k, j)).astype(np.float32)
        tally = self.tallies[MATMUL]
        if not is_product(await self._ask(tally, lambda: self._bus.matrix.matmul(a, b)), a, b):
            tally.mismatches += 1

    async def _ask(self, tally: Tally, call: Callable[[], Awaitable[Array]]) -> Array:
        """Make a call, and time it.

        Raises:
            _Over: there is no time for it, or it got no answer.
        """
        if self._asked.is_set() or time.monotonic() >= self._until:
            raise _Over
        tally.calls += 1
        started = time.perf_counter()
        try:
            answer = await call()
        except BusError as error:
            tally.error = f"{type(error).__name__}: {error}"
            raise _Over from None
        tally.latencies_us.append(round(1e6 * (time.perf_counter() - started)))
        return answer


class _Over(Exception):
    """The agent asks no more."""


def is_product(c: Array, a: Array, b: Array) -> bool:
    """Whether c is a @ b as float32 can have it.

    Each element may differ from float64's by the bound on the error of a sum of k products, k · 2⁻²³ · Σ|a||b|
    (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1, with twice the unit roundoff for slack).
    """
    exact = a.astype(np.float64) @ b.astype(np.float64)
    bound = a.shape[1] * 2.0**-23 * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))
    return c.shape == exact.shape and c.dtype == np.float32 and bool(np.all(np.abs(c - exact) <= bound))


def same_direction(vector: Array, reference: Array) -> bool:
    """Whether an embedding is of length 1 and its cosine with the reference at least COSINE."""
    if vector.shape != reference.shape or vector.dtype != np.float32:
        return False
    wide = vector.astype(np.float64)
    return bool(abs(np.linalg.norm(wide) - 1) <= 1e-4 and wide @ reference >= COSINE)


async def ask(task: AgentsTask, asked: asyncio.Event) -> None:
    """Run the agents, and tell what they saw."""
    configure_logging(task.settings.log)
    try:
        async with connect(settings=task.settings) as bus:
            agents = Agents(task, bus, asked)
            await agents.run()
    except BusError as error:
        sys.exit(f"agents: {error}")
    tell(agents.tallies)


def main() -> None:
    """Be the process."""
    be_child(AgentsTask, ask)
