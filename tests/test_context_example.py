"""The example of contexts reads the library as it says, and its figures are what they claim to be."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import ServerSettings, load
from aikoryu.gpu.context.keepers import Keepers

from .benchmark_runs import ROOT

RECORD = ROOT / "benchmarks" / "results" / "context_example.json"

FILES = {
    "json/__init__.py": '"""Encodes and decodes."""\nfrom .decoder import Decoder\nimport re as _re, tests\n',
    "json/decoder.py": '''"""Decodes. Scan a long string of text."""
import json
from re import compile
class Decoder:
    """Makes objects of a text. And more."""
    def decode(self):
        """Methods are not asked for."""
def scan():
    """Scan a long string of text."""
def short():
    """Only three words."""
def copied():
    """Says what others say, too."""
def _private():
    """Nobody asks for private ones."""
''',
    "re.py": '''def compile():
    """Turn a pattern into an
    object that matches."""
    from xml.nothing import there
async def copied():
    """Says what others say, TOO!"""
''',
    "json/tests/test_it.py": "import json\n",
    "nonsense.py": "import json\n",
    "test/test_json/test_decoder.py": '''def test_it():
    """Bad texts are refused here."""
class Test:
    """Texts are made into objects."""
''',
    "test/test_json/test_speed.py": 'def test_it():\n    """It is as fast as ever."""\n',
    "test/test_re.py": 'def test_it():\n    """It is as fast as ever."""\n    \'Not a docstring at all.\'\n',
    "test/test_else.py": 'def test_it():\n    """This is about no module."""\n',
    "test/test_re/test_bad.py": "def def\n",
}


@pytest.fixture(autouse=True)
def from_the_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_modules_are_read_with_what_they_import_and_what_only_they_say(folder: Path) -> None:
    from examples.stdlib_modules import library

    modules = library(folder)
    assert list(modules) == ["json", "json.decoder", "re"]
    assert modules["json"].says == "json: Encodes and decodes."
    assert {name: module.imports for name, module in modules.items()} == {
        "json": {"json.decoder", "re"},
        "json.decoder": {"json", "re"},
        "re": set(),
    }
    assert {name: module.questions for name, module in modules.items()} == {
        "json": [],
        "json.decoder": ["Makes objects of a text."],
        "re": ["Turn a pattern into an object that matches."],
    }


def test_tests_ask_about_the_module_that_they_are_named_after(folder: Path) -> None:
    from benchmarks.context_example import questions_of_tests
    from examples.stdlib_modules import library

    asked = questions_of_tests(library(folder), folder / "test")
    assert list(zip(asked.texts, asked.right.tolist(), strict=True)) == [
        ("Bad texts are refused here.", 1),
        ("Texts are made into objects.", 1),
    ]


def test_bags_of_words_weigh_rare_words_and_leave_out_unknown_ones() -> None:
    from examples.stdlib_modules import bags_of_words

    known = ["a lock", "a heap", "a heapOfLocks and a lock"]
    lock, heap, both, none = bags_of_words(["lock", "THE heap", "a lock, a heap", "nothing"], known)
    assert lock @ lock == pytest.approx(1)
    assert lock @ heap == pytest.approx(0)
    assert both @ lock == pytest.approx(both @ heap, rel=0.5)
    assert both @ lock > 0.5
    assert not none.any()


def test_blended_contexts_are_the_solution_and_ranks_count_equals_against_it() -> None:
    from benchmarks.context_example import blended, ranks

    own = np.eye(4, dtype=np.float32)
    edges = [(0, 1), (0, 2), (2, 3)]
    hears = np.eye(4)
    for target, source in edges:
        hears[target, source] = 1
    wanted = 0.3 * np.linalg.inv(np.eye(4) - 0.7 * hears / hears.sum(1, keepdims=True))
    assert np.abs(blended(own, edges, 0.3) - wanted).max() < 1e-3 / 0.3
    queries = np.array([[1, 0.5, 0.5, 0]], np.float32)
    assert [ranks(queries, own, np.array([right])).item() for right in range(4)] == [1, 3, 3, 4]


def test_edges_say_who_hears_and_who_is_heard(folder: Path) -> None:
    from benchmarks.context_example import edges_of
    from examples.stdlib_modules import library

    modules = library(folder)
    assert edges_of(modules, "imports") == [(0, 1), (0, 2), (1, 0), (1, 2)]
    assert edges_of(modules, "importers") == [(0, 1), (1, 0), (2, 0), (2, 1)]
    assert edges_of(modules, "both") == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


def test_intervals_draw_modules_and_not_questions() -> None:
    from benchmarks.context_example import Intervals

    rng = np.random.default_rng(1)
    by_module = rng.normal(size=50)
    right, differences = np.repeat(np.arange(50), 20), np.repeat(by_module, 20)
    middle, low, high = Intervals(right).of(differences)
    assert middle == pytest.approx(by_module.mean(), abs=1e-4)
    assert high - low == pytest.approx(2 * 1.96 * by_module.std() / np.sqrt(50), rel=0.1)


def test_all_is_measured_and_told(folder: Path, tmp_path: Path) -> None:
    from benchmarks import context_table
    from benchmarks.context_example import measure, questions_of_modules, questions_of_tests
    from examples.stdlib_modules import bags_of_words, library

    modules = library(folder)
    says = [each.says for each in modules.values()]
    asked = [questions_of_modules(modules), questions_of_tests(modules, folder / "test")]
    result = {"embeddings": {"words": measure(modules, lambda texts: bags_of_words(texts, says), asked)}}
    assert len(context_table.tables(result)) == 6
    assert "hears who imports it" in context_table.tables(result)[0]
    context_table.draw(result, tmp_path / "plot.svg")
    ElementTree.parse(tmp_path / "plot.svg")


def test_page_shows_what_was_measured() -> None:
    from benchmarks import context_table

    result: dict[str, Any] = json.loads(RECORD.read_text())
    page = (ROOT / "docs" / "context_example.md").read_text()
    for table in context_table.shown(result):
        assert table in page


async def test_example_asks_over_the_bus(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = importlib.import_module("stdlib_context")
    modules = importlib.import_module("stdlib_modules").library(folder)
    monkeypatch.setattr(example, "library", lambda: modules)
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        settings = load(flags={"nats.url": server.url})
        transport = await NatsConnection.open(ConnectOptions.of(settings.nats))
        keepers = Keepers(transport, settings, "cpu", "worker", on_loaded=lambda: None)
        await keepers.start()
        await example.main(server.url)
        await keepers.stop()
        await transport.close()
    lines = [line for line in capsys.readouterr().out.splitlines() if "[info" not in line]
    assert lines[0] == "no worker has the model: words are compared, not meanings"
    assert lines[1] == "3 modules, 4 imports, 2 questions"
    assert [line.split()[0] for line in lines[3:5]] == ["own", "blended"]
    assert lines[5] == "1 modules say nothing any more, and are asked"
    own, blended = (line.split()[1:] for line in lines[7:])
    assert blended[1] == "100%", "of three all are among the first five"
    assert own[0] == "0%", "what is like nothing comes last"
