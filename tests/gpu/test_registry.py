"""Which operations a worker has, and where they may come from."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aikoryu.gpu.registry import Catalogue, load

MATRIX = ("matmul", "add", "subtract", "multiply", "einsum", "solve", "reduce", "transpose")
TENSORS = ("put", "get", "free", "eval")
PACKETS = ("dissect", "label", "flows", "classify", "balance", "rules.put", "rules.delete", "rules.list")
BUILT_IN = {
    "echo",
    "agents.assign",
    *(f"matrix.{name}" for name in (*MATRIX, *TENSORS)),
    *(f"packets.{name}" for name in PACKETS),
}
OPERATION = """
from aikoryu.gpu.operation import operation

@operation("{name}", inputs={{"x": "f4"}}, outputs={{"y": "f4"}})
def run(x, *, factor: float = {factor}):
    return {{"y": x * factor}}
"""
PACKAGE = """
from aikoryu.gpu.operation import Operation
from aikoryu.gpu.signature import Signature

class Made(Operation):
    name = "{name}"
    signature = Signature({{"x": "f4"}}, {{"x": "f4"}})

    def run(self, batch, device):
        return {{"x": batch["x"]}}

instance = Made()
"""


@pytest.fixture(autouse=True)
def unimported() -> Iterator[None]:
    """What a test imports is forgotten after it."""
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(path: Path, name: str = "demo.scale", factor: float = 2.0) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(OPERATION.format(name=name, factor=factor))
    return str(path)


def install(folder: Path, *points: str, name: str = "demo.packaged") -> None:
    """A distribution with entry points, as pip leaves it."""
    (folder / "packaged_operations.py").write_text(PACKAGE.format(name=name))
    info = folder / "packaged_operations-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged-operations\nVersion: 1.0\n")
    lines = [f"{n} = packaged_operations:{point}" for n, point in enumerate(points)]
    (info / "entry_points.txt").write_text("\n".join(["[aikoryu.operations]", *lines, ""]))


def test_built_in_operations_are_always_there() -> None:
    assert set(load(Catalogue())) == BUILT_IN


def test_file_adds_its_operations(tmp_path: Path) -> None:
    found = load(Catalogue(modules=(write(tmp_path / "mine.py"),)))
    assert set(found) == BUILT_IN | {"demo.scale"}


def test_module_adds_its_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "importable_operations.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert "demo.scale" in load(Catalogue(modules=("importable_operations",)))


def test_files_of_one_name_in_two_folders_are_both_loaded(tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "operations.py", "demo.first")
    second = write(tmp_path / "b" / "operations.py", "demo.second")
    assert {"demo.first", "demo.second"} <= set(load(Catalogue(modules=(first, second))))


def test_file_is_loaded_once(tmp_path: Path) -> None:
    catalogue = Catalogue(modules=(write(tmp_path / "mine.py"),))
    assert load(catalogue)["demo.scale"] is load(catalogue)["demo.scale"]


def test_two_operations_of_one_name_are_refused(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.py"), write(tmp_path / "b.py", factor=3.0)
    with pytest.raises(ValueError, match=r"two operations are called 'demo\.scale'"):
        load(Catalogue(modules=(first, second)))


def test_built_in_name_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"two operations are called 'matrix\.add'"):
        load(Catalogue(modules=(write(tmp_path / "a.py", "matrix.add"),)))


@pytest.mark.parametrize("name", ["demo scale", "demo.*", "agent.scale", ""])
def test_name_that_is_no_subject_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"operation {re.escape(repr(name))}: (use letters|a system cannot be)"):
        load(Catalogue(modules=(write(tmp_path / "a.py", name),)))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"nowhere\.py: no such file of operations"):
        load(Catalogue(modules=(str(tmp_path / "nowhere.py"),)))


def test_missing_module_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="no_such_module"):
        load(Catalogue(modules=("no_such_module",)))


def test_file_that_failed_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('at import')")
    with pytest.raises(RuntimeError, match="at import"):
        load(Catalogue(modules=(str(path),)))
    write(path)
    assert "demo.scale" in load(Catalogue(modules=(str(path),)))


@pytest.mark.parametrize("point", ["Made", "instance"])
def test_entry_point_adds_a_class_or_an_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    install(tmp_path, point)
    monkeypatch.syspath_prepend(tmp_path)
    assert set(load(Catalogue())) == BUILT_IN | {"demo.packaged"}


def test_entry_points_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "Made", "instance")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"two operations are called 'demo\.packaged'"):
        load(Catalogue())
