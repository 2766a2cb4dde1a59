"""`aikoryu bench` becomes the benchmark, where the source tree is."""

from __future__ import annotations

from pathlib import Path

import pytest

from aikoryu.cli import bench, main

from .conftest import Start


def test_arguments_go_to_the_benchmark(start: Start, tmp_path: Path) -> None:
    command = start("bench", "bus", "--help", cwd=tmp_path)
    assert command.end() == 0
    assert command.words.startswith("usage: python -m benchmarks.bus")


def test_exit_status_is_the_benchmarks(start: Start) -> None:
    command = start("bench", "bus", "--no-such-argument")
    assert command.end() == 2


def test_without_the_source_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert main(["bench", "bus"]) == 1
    assert "the benchmarks live in the source tree" in capsys.readouterr().err
