"""Tasks to agents: by a worker's word, by likeness and load without it, by load alone without embeddings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import aikoryu as ai
from aikoryu.agents import dispatch as module
from aikoryu.agents.assignment import Assigned, Candidates
from aikoryu.agents.bus import Bus
from aikoryu.agents.dispatch import Dispatcher
from aikoryu.agents.dispatch_pool import Pool
from aikoryu.agents.listing import Entry
from aikoryu.agents.lookout import Lookout
from aikoryu.agents.tensors import Handle
from aikoryu.bus.errors import NoTensor, NoWorker
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.subjects import Subjects

WORDS = ("french", "sums", "news")


class Models:
    """Embeds a text as which of three words it has.

    Attributes:
        there: whether a worker is.
        asked: how many texts were embedded.
    """

    def __init__(self) -> None:
        self.there = True
        self.asked = 0

    async def embed(self, text: Any) -> NDArray[np.float32]:
        if not self.there:
            raise NoWorker("none")
        texts = [text] if isinstance(text, str) else text
        self.asked += len(texts)
        vectors = np.array([[word in each for word in WORDS] for each in texts], np.float32)
        return vectors[0] if isinstance(text, str) else vectors


class Tensors:
    """Keeps what is put, by key."""

    def __init__(self) -> None:
        self.there = True
        self.kept: dict[str, NDArray[Any]] = {}

    async def put(self, array: NDArray[Any], *, ttl_s: float, group: str, replace: Handle | None) -> Handle:
        if not self.there:
            raise NoWorker("none")
        key = replace.key if replace is not None else f"{group}.{len(self.kept)}"
        self.kept[key] = array
        return Handle(key, "f4", array.shape)


class Assignment:
    """Gives a task to the agent that a test says.

    Attributes:
        answer: its place; an error is raised.
        needs: what was asked for.
    """

    def __init__(self) -> None:
        self.answer: int | ai.BusError = 0
        self.needs: list[int] = []
        self.candidates: list[Candidates] = []

    async def assign(self, query: NDArray[np.float32], candidates: Candidates, *, need: int) -> Assigned:
        self.needs.append(need)
        self.candidates.append(candidates)
        if isinstance(self.answer, ai.BusError):
            raise self.answer
        return Assigned(self.answer, 1.0)


class Worker(ai.Agent):
    def __init__(self, name: str = "") -> None:
        self.name = name

    @ai.handler
    async def run(self, task: str) -> str:
        return f"{self.name}: {task}"


class Other(ai.Agent):
    @ai.handler
    async def walk(self, task: str) -> None: ...


class Rig:
    def __init__(self, bus: Bus, lookout: Lookout) -> None:
        self.models, self.tensors, self.assignment = Models(), Tensors(), Assignment()
        self.dispatcher = Dispatcher(bus.agents, lookout, self.models, self.tensors, self.assignment)  # type: ignore[arg-type]

    async def choose(self, about: str, *needed: str, handler: str = "run") -> str:
        return await self.dispatcher.choose(handler, about, frozenset(needed))


@pytest.fixture
async def app(memory: MemoryBus) -> AsyncIterator[ai.App]:
    made = ai.App.in_memory(memory)
    made.add(Worker("a"), "linguist", about="speaks french", capabilities={"talk"})
    made.add(Worker("b"), "reckoner", about="does sums", capabilities={"talk", "count"})
    made.add(Worker("c"), "plain", capabilities={"sweep"})
    made.add(Other, "walker", about="brings news by foot")
    async with made:
        yield made


@pytest.fixture
async def rig(app: ai.App, memory: MemoryBus) -> AsyncIterator[Rig]:
    lookout = Lookout(memory.connect(), Subjects(), 1)
    yield Rig(app.bus, lookout)
    await lookout.close()


async def test_a_worker_says_who_takes_a_task(rig: Rig) -> None:
    rig.assignment.answer = 1
    assert await rig.choose("french") == "reckoner"
    (candidates,) = rig.assignment.candidates
    assert candidates.vectors.shape == (3, 3)
    assert rig.assignment.needs[0] != 0  # the handler


async def test_without_its_word_the_most_alike_is_asked(rig: Rig) -> None:
    rig.assignment.answer = NoWorker("none")
    assert await rig.choose("some french, please", "talk", "count") == "reckoner"
    rig.tensors.there = False
    assert await rig.choose("carry news", handler="walk") == "walker"


async def test_a_task_that_has_no_room_goes_to_the_least_loaded(rig: Rig) -> None:
    rig.assignment.answer = -1
    assert await rig.choose("sums", "count") == "reckoner"


async def test_without_embeddings_and_without_words_load_decides(rig: Rig) -> None:
    assert await rig.choose("", "sweep") == "plain"
    rig.models.there = False
    assert await rig.choose("french", "count") == "reckoner"
    assert not rig.assignment.needs


async def test_what_no_agent_with_words_can_do_is_done_by_one_without(rig: Rig) -> None:
    assert await rig.choose("sweep the french floor", "sweep") == "plain"


@pytest.mark.parametrize("about", ["", "news"])
async def test_nobody_who_can_is_an_error(rig: Rig, about: str) -> None:
    with pytest.raises(NoWorker, match="with fly has a handler 'run'"):
        await rig.choose(about, "fly")
    with pytest.raises(NoWorker, match="no agent has a handler 'jump'"):
        await rig.choose(about, handler="jump")


async def test_agents_are_embedded_once_and_their_tensors_stay_where_they_are(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFRESH_S", 0.0)
    for _ in range(3):
        await rig.choose("french")
    assert rig.models.asked == 3 + 3
    assert len(rig.tensors.kept) == 4


async def test_tensors_that_a_worker_has_lost_are_put_again(rig: Rig) -> None:
    await rig.choose("french")
    rig.assignment.answer = NoTensor("gone")
    assert await rig.choose("french") == "linguist"
    rig.assignment.answer = 1
    assert await rig.choose("french") == "reckoner"
    assert len(rig.tensors.kept) == 8


async def test_a_worker_that_says_nothing_is_not_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHOOSE_S", 0.001)
    monkeypatch.setattr(rig.assignment, "assign", lambda *_, **__: asyncio.Event().wait())
    await rig.choose("", "count")  # who is there is known
    assert await rig.choose("french", "count") == "reckoner"


async def test_agents_with_state_take_no_tasks(memory: MemoryBus) -> None:
    class Keeper(ai.Stateful[int]):
        @ai.handler
        async def run(self, task: str) -> None: ...

    app = ai.App.in_memory(memory)
    app.add(Keeper, "keeper", about="keeps french", capabilities={"keep"})
    app.add(Worker("a"), "linguist", about="speaks french")
    async with app as bus:
        lookout = Lookout(memory.connect(), Subjects(), 1)
        rig = Rig(bus, lookout)
        assert {entry.name: entry.keyed for entry in await lookout.find()} == {"keeper": True, "linguist": False}
        rig.assignment.answer = -1
        for about in ("french", ""):
            assert {await rig.choose(about) for _ in range(8)} == {"linguist"}
            with pytest.raises(NoWorker, match="with keep"):
                await rig.choose(about, "keep")
        await lookout.close()


async def test_an_app_dispatches(app: ai.App) -> None:
    assert await app.dispatch("go", "run", about="french", capabilities={"count"}) == "b: go"
    assert await app.bus.dispatch("go", "run", capabilities={"sweep"}) == "c: go"


def test_processes_of_an_agent_are_one_with_what_all_of_them_can_do() -> None:
    both, one = frozenset({"x", "y"}), frozenset({"x"})
    pool = Pool.of(
        [
            Entry("b", "p1", both, 0.5, ("run",), about="two"),
            Entry("b", "p2", one, 0.25, ("run",), about="two"),
            Entry("a", "p1", both, 1.0, ("run",), about="one"),
            Entry("c", "p1", both, 0.0, ("run",)),
        ],
        now=3.0,
    )
    assert (pool.names, pool.texts) == (["a", "b"], ["one", "two"])
    assert pool.load.tolist() == [1.0, 0.25]
    assert pool.capacity.tolist() == [16, 32]
    need = pool.need({"y"}, "run")
    assert need is not None
    assert [int(each) & need == need for each in pool.capabilities] == [True, False]
    assert pool.need({"z"}, "run") is None
    assert pool.need({"run"}, "run") is None  # a handler is no capability
