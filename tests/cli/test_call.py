"""`aikoryu call` against a running worker."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aikoryu.cli import main

from .conftest import Start

Typed = Callable[[str], None]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Typed]:
    """Put text into a pipe that is stdin."""
    reader, writer = os.pipe()

    def write(text: str) -> None:
        os.write(writer, text.encode())
        os.close(writer)

    with os.fdopen(reader) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield write


def answers(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    out, err = capsys.readouterr()
    assert err == ""
    return [json.loads(line) for line in out.splitlines()]


def test_row_from_arguments(up: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "matrix.matmul", "a=[[1,2],[3,4]]", "b=[[0,1],[1,0]]", "--nats", up]) == 0
    assert answers(capsys) == [{"c": [[2.0, 1.0], [4.0, 3.0]]}]


def test_text_needs_no_quotes(up: str, capsys: pytest.CaptureFixture[str]) -> None:
    operation = "models.embed.all-MiniLM-L6-v2"
    assert main(["call", operation, "text=The server is on fire.", "--nats", up]) == 0
    assert main(["call", operation, "text=42", "--nats", up]) == 0
    vectors = [np.array(answer["embedding"]) for answer in answers(capsys)]
    assert [vector.shape for vector in vectors] == [(384,), (384,)]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_parameters(up: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "demo.scale", "x=[1,2,3]", "-p", "factor=0.1", "--nats", up]) == 0
    assert answers(capsys) == [{"y": [0.1, 0.2, 0.3]}]


def test_rows_from_stdin_are_answered_in_order(up: str, typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"x": list(range(n % 7))} for n in range(200)]
    typed("\n\n".join(map(json.dumps, rows)))
    assert main(["call", "echo", "--nats", up]) == 0
    assert answers(capsys) == rows


def test_stdin_may_be_a_file(
    up: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows"
    file.write_text('{"x": 1}\n{"x": [2]}\n')
    with file.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert main(["call", "echo", "--nats", up]) == 0
    assert answers(capsys) == [{"x": 1}, {"x": [2]}]


def test_rows_from_a_file(up: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"x": true}\n')
    assert main(["call", "echo", "--rows", str(file), "--nats", up]) == 0
    assert answers(capsys) == [{"x": True}]


def test_rows_that_fail_are_told_and_their_neighbours_answered(
    up: str, typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    typed('{"x": [1.5]}\n{"y": [1]}\n{"x": [[1], [2, 3]]}\nno row\n[1]\n{"x": [2.5]}\n')
    assert main(["call", "echo", "--nats", up]) == 1
    out, err = capsys.readouterr()
    assert out == '{"x": [1.5]}\n{"x": [2.5]}\n'
    told = [line.split(": ")[:2] for line in err.splitlines()]
    assert told == [["row 1", "bad_column"], ["row 2", "bad_column"], ["row 3", "bad_frame"], ["row 4", "bad_frame"]]


def test_a_row_is_answered_while_the_next_is_not_there_yet(up: str, start: Start) -> None:
    command = start("call", "echo", "--nats", up)
    assert command.process.stdin is not None
    for number in range(3):
        print(json.dumps({"x": number}), file=command.process.stdin, flush=True)
        assert json.loads(command.hear("x")[0].join(['{"', f'": {number}}}'])) == {"x": number}
    command.process.stdin.close()
    assert command.end() == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["echo", "--rows", "/no/such/file"], "/no/such/file cannot be read: No such file or directory"),
        (["echo", "x=1", "--rows", "rows"], "give one of them"),
        (["no.such", "x=1"], "nobody serves aikoryu.v1.default.no.such"),
        (["no such", "x=1"], "operation 'no such': use letters"),
        (["echo", "y=1"], "column 'x' is missing"),
        (["demo.scale", "x=1", "-p", "factor=no"], "factor"),
        (["demo.scale", "x=1", "factor=3"], "'factor' is a parameter, no column: give it as -p factor=3"),
        (["demo.scale", "x=[1,2"], "'[1,2' is invalid JSON"),
    ],
)
def test_failure_says_what_to_do(up: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", *arguments, "--nats", up]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert told in err


def test_no_row_on_a_terminal_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = os.openpty()
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert main(["call", "echo"]) == 1
    os.close(controller)
    assert "no row: give COLUMN=JSON" in capsys.readouterr().err


def test_column_without_a_value_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["call", "echo", "x"])
    assert exit_.value.code == 2
    assert "'x' is no NAME=VALUE" in capsys.readouterr().err
