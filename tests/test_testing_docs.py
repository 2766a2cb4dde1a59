"""The examples of docs/testing.md, run as the tests they are."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aikoryu import testing
from aikoryu.bus.recorder import Recorder
from aikoryu.bus.recording import RecordingWriter
from aikoryu.bus.subjects import Subjects

TEXT = (Path(__file__).parents[1] / "docs/testing.md").read_text()
TESTS = re.findall(r"^async def (test_\w+)", TEXT, re.MULTILINE)


@pytest.fixture(scope="module")
def examples() -> Iterator[ModuleType]:
    """The document's Python as one module."""
    module = ModuleType("examples_of_testing")
    sys.modules[module.__name__] = module  # where types are looked up by their names
    for block in re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/testing.md", "exec"), vars(module))
    yield module
    del sys.modules[module.__name__]


@pytest.fixture
async def calls(examples: ModuleType, tmp_path: Path) -> str:
    """A recording of two calls of the guide."""
    path, clock, subjects = tmp_path / "calls.rec", count(1), Subjects()
    with RecordingWriter(path, subjects.root, ("agent.>",), next(clock), 1 << 20) as writer:
        network = testing.Network()
        connection = network.connect()
        recorder = Recorder(connection, subjects, writer, ["agent.>"], ["_INBOX"], clock=lambda: next(clock))
        await recorder.start()
        async with testing.app(examples.app, network=network) as bus:
            for animal in ("owls", "mice"):
                await bus.agents.get("guide").ask({"text": animal})
        await recorder.stop()
    return str(path)


def test_document_has_examples() -> None:
    assert len(TESTS) == 5


@pytest.mark.parametrize("name", TESTS)
async def test_example(examples: ModuleType, calls: str, name: str) -> None:
    example: Callable[..., Any] = getattr(examples, name)
    await (example(calls) if name == "test_answers_are_those_of_yesterday" else example())
