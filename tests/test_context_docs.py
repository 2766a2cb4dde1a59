"""docs/context.md: its examples run, and its table is that of the operations."""

from __future__ import annotations

import re
import sys
import textwrap
from contextlib import aclosing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import aikoryu as ai
from aikoryu.agents import session
from aikoryu.agents.models import Models
from aikoryu.bus.memory import MemoryBus
from aikoryu.config import Settings
from aikoryu.gpu.context import calls

from .agents.conftest import until
from .agents.fake_context import FakeOwner

PAGE = (Path(__file__).parents[1] / "docs" / "context.md").read_text()
ASKING, AGENT = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
ROWS = {
    found[1]: [cell.strip() for cell in found[2].split("|")]
    for found in re.finditer(r"^\| `context\.(\w+)(?:\.<graph>)?` \|(.*)\|$", PAGE, re.M)
}
OPERATIONS = calls.OF_A_GRAPH | calls.OF_ANY_KEEPER


async def test_example_of_asking_runs(capsys: pytest.CaptureFixture[str]) -> None:
    memory = MemoryBus()
    await FakeOwner(memory.connect(), {}).start()

    class Enough(Exception):
        pass

    async def react(vector: Any) -> None:
        assert vector.tolist() == pytest.approx([0.7, 0.0], abs=0.2)
        raise Enough

    names = {
        "aclosing": aclosing,
        "vector": [1.0, 0.0],
        "question": [1.0, 0.0],
        "CAN_TRANSLATE": 0,
        "react": react,
    }
    exec("async def example(bus):\n" + textwrap.indent(ASKING, "    "), names)
    async with session(memory.connect(), Settings()) as bus:
        with pytest.raises(Enough):
            await names["example"](bus)  # type: ignore[operator]
    assert capsys.readouterr().out.split()[0] == "ada"


async def test_example_of_an_agent_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def embed(self: Models, text: str) -> Any:
        return np.array([len(text), 0], np.float32)

    monkeypatch.setattr(Models, "embed", embed)
    memory, told = MemoryBus(), []

    class Hears(ai.Agent):
        @ai.on("scout.moved")
        async def moved(self, moved: float) -> None:
            told.append(moved)

    await FakeOwner(memory.connect(), {}).start()
    module = ModuleType("example_of_contexts")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where types are looked up by their names
    app = vars(module)["app"] = ai.App.in_memory(memory)
    exec(compile(AGENT, "docs/context.md", "exec"), vars(module))
    app.add(Hears, "hears")
    async with app as bus:
        await bus.context("team").put("editor", [0.0, 1.0])
        assert await bus.agents.get("scout").read("hello") == ["scout", "editor"]
        await until(lambda: told)


def test_table_has_every_operation() -> None:
    assert ROWS.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("name", OPERATIONS)
def test_table_has_the_columns_and_parameters_of_each(name: str) -> None:
    signature, (columns, parameters, answer, *_) = OPERATIONS[name].signature, ROWS[name]
    assert re.findall(r"`(\w+)`", columns) == list(signature.inputs)
    assert re.findall(r"`(\w+)`", answer) == list(signature.outputs)
    assert re.findall(r"`(\w+)`", parameters) == list(OPERATIONS[name].parameters.__struct_fields__)
