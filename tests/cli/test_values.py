"""What people type becomes columns, and answers become JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aikoryu.bus.errors import BadColumn
from aikoryu.cli.values import Input, inputs_of, plain, row_of, value_of

MATMUL = {"inputs": "a: T[i,k], b: T[k, j]", "types": "T: f2|bf16|f4|f8"}


def dtypes(row: dict[str, Any]) -> dict[str, str]:
    return {name: value.dtype.str[1:] for name, value in row.items()}


def test_inputs_are_read_from_what_discovery_tells() -> None:
    assert inputs_of(MATMUL) == {name: Input(("f2", "bf16", "f4", "f8"), "T") for name in "ab"}
    assert inputs_of({"inputs": "text: utf8, n: i4|i8", "types": ""}) == {
        "text": Input(("utf8",)),
        "n": Input(("i4", "i8")),
    }
    assert inputs_of({}) == {}


@pytest.mark.parametrize(
    ("text", "takes", "value"),
    [
        ("[1, 2]", None, [1, 2]),
        ("hello", None, "hello"),
        ('"hello"', None, "hello"),
        ("5", None, 5),
        ("5", Input(("utf8",)), "5"),
        ('"5"', Input(("utf8",)), "5"),
        ("5", Input(("f4",)), 5),
        ("[1", Input(("utf8", "f4")), "[1"),
        ("[1", Input(("bin",)), "[1"),
    ],
)
def test_an_argument_is_json_or_text(text: str, takes: Input | None, value: Any) -> None:
    assert value_of(text, takes) == value


@pytest.mark.parametrize("text", ["[1,2", "hello", "1" + ",2" * 1000])
def test_an_argument_that_is_no_json_is_refused_where_no_text_is_taken(text: str) -> None:
    with pytest.raises(BadColumn, match="invalid JSON") as caught:
        value_of(text, Input(("f4", "f8")))
    assert repr(text)[:10] in str(caught.value)
    assert len(str(caught.value)) < 250


def test_numbers_of_unknown_columns_are_float32_int64_or_bool() -> None:
    row = row_of({"f": [1.5, 2], "i": [[1]], "b": [True], "n": 3, "u": 2**63}, {})
    assert dtypes(row) == {"f": "f4", "i": "i8", "b": "b1", "n": "i8", "u": "u8"}
    assert row["i"].shape == (1, 1)
    assert row["n"].shape == ()


def test_integers_become_floats_where_only_floats_are_taken() -> None:
    assert dtypes(row_of({"a": [[1]], "b": [[2]]}, inputs_of(MATMUL))) == {"a": "f4", "b": "f4"}


def test_columns_of_one_letter_get_one_dtype() -> None:
    add = {"inputs": "a: T[...], b: T[...], n: N", "types": "T: f4|f8|i8, N: i4|i8"}
    assert dtypes(row_of({"a": [1], "b": [0.5], "n": 1}, inputs_of(add))) == {"a": "f4", "b": "f4", "n": "i8"}
    assert dtypes(row_of({"a": [1], "b": [2], "n": 1}, inputs_of(add))) == {"a": "i8", "b": "i8", "n": "i8"}


def test_the_only_dtype_that_is_taken_is_sent() -> None:
    assert dtypes(row_of({"x": [1, 2]}, {"x": Input(("u1",))})) == {"x": "u1"}
    assert dtypes(row_of({"x": [1, 2]}, {"x": Input(("f8",))})) == {"x": "f8"}


def test_a_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BadColumn, match="does not fit uint8"):
        row_of({"x": [1, 300]}, {"x": Input(("u1",))})


@pytest.mark.parametrize("value", [[[1], [2, 3]], [1, "a"], None, {"a": 1}])
def test_what_is_no_array_is_refused(value: Any) -> None:
    with pytest.raises(BadColumn, match="column 'x'"):
        row_of({"x": value}, {})


def test_bytes_are_base64() -> None:
    takes = {"x": Input(("bin",))}
    assert row_of({"x": "AAE="}, takes) == {"x": b"\0\1"}
    assert plain(b"\0\1") == "AAE="
    with pytest.raises(BadColumn, match="base64"):
        row_of({"x": "not base64"}, takes)


@pytest.mark.parametrize(
    ("value", "json"),
    [
        (np.array([0.1, 1e-8], np.float32), [0.1, 1e-8]),
        (np.float16(0.1), 0.1),
        (np.array([0.1]), [0.1]),
        (np.array([[1, 2]]), [[1, 2]]),
        (np.array(True), True),
        (np.array([1 + 2j], np.complex64), [[1.0, 2.0]]),
        ("text", "text"),
    ],
)
def test_answers_are_plain_json(value: Any, json: Any) -> None:
    assert plain(value) == json
