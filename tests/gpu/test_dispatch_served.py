"""Tasks that an app dispatches, assigned by a worker; sentences are embedded by words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `worker`")

import aikoryu as ai
from aikoryu.agents.models import DEFAULT_EMBEDDING
from aikoryu.bus.columns import pack, unpack
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.service import Held, Service
from aikoryu.bus.subjects import Subjects
from aikoryu.config import ModelSettings, ResidentSettings, Settings, WorkerSettings
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker

SETTINGS = Settings(
    models=ModelSettings(embed=()), worker=WorkerSettings(name="w"), residents=ResidentSettings(host_bytes=64 << 20)
)
WORDS = ("french", "sums", "news")


class Names(ai.Agent):
    def __init__(self, name: str) -> None:
        self.name = name

    @ai.handler
    async def run(self, task: str) -> str:
        return self.name


@pytest.fixture
async def served() -> AsyncIterator[tuple[ai.App, InlineEngine]]:
    memory = MemoryBus()
    engine = InlineEngine(load(catalogue_of(SETTINGS)), slab_bytes=8 << 20)
    worker = Worker(memory.connect("_WORKER"), SETTINGS, [engine])
    await worker.start()
    embedding = Service(memory.connect("_WORKER"), Subjects(), "e", reply_prefixes=("_INBOX",))

    def embed(held: Held) -> None:
        texts = unpack(held.request.cols["text"], held.request.n)
        vectors = np.array([[word in text for word in WORDS] for text in texts], np.float32)
        embedding.answer(held, [(0, held.request.n)], {"embedding": pack(vectors)}, [])

    await embedding.serve(f"models.embed.{DEFAULT_EMBEDDING}", embed)
    app = ai.App.in_memory(memory)
    for name, about in (("linguist", "french"), ("reckoner", "sums"), ("herald", "news"), ("idler", "")):
        app.add(Names(name), name, about=about)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(worker.stop)
        await stack.enter_async_context(app)
        yield app, engine


async def test_tasks_are_assigned_by_a_worker(served: tuple[ai.App, InlineEngine]) -> None:
    app, engine = served
    await app.dispatch("first", "run", about="french")
    engine.jobs.clear()
    words = [*WORDS] * 4
    assert (
        await asyncio.gather(*(app.dispatch("go", "run", about=word) for word in words))
        == [
            "linguist",
            "reckoner",
            "herald",
        ]
        * 4
    )
    assert sum(job.rows for job in engine.jobs if job.operation == "agents.assign") == 12
