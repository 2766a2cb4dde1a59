"""What counts as the same answer, and how a difference is told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.bus.columns import Column, pack, pack_array
from aikoryu.bus.differences import RTOL, Tolerance, compare
from aikoryu.bus.exchange import Outcome, Part
from aikoryu.bus.frames import Reply, RowError, encode, encode_json

DEFAULT = Tolerance()
DTYPES = {"f2": np.float16, "f4": np.float32, "f8": np.float64, "c8": np.complex64, "c16": np.complex128}


def outcome(errors: list[RowError] | None = None, rows: int = 0, **columns: Any) -> Outcome:
    """The answer of as many rows as the columns have, or of `rows`, those of the errors after the others."""
    cols = {name: value if isinstance(value, Column) else pack(value) for name, value in columns.items()}
    valued = max((len(value) for value in columns.values() if not isinstance(value, Column)), default=rows)
    made = Outcome(valued + len(errors or []))
    at = [(0, valued)] if valued else []
    made.add(Part.of(Reply(id=1, at=at, cols=cols, err=errors or [])))
    return made


def differences(then: Outcome, now: Outcome, tolerance: Tolerance = DEFAULT) -> list[tuple[int, str, str, str]]:
    compared = compare(then, now, tolerance)
    found = list(compared.found)
    assert sorted({row for row, *_ in found}) == compared.differing.tolist()
    return found


def test_the_same_answer_has_no_difference() -> None:
    def made() -> Outcome:
        floats = np.array([[np.nan, np.inf], [0.0, -1.5]])
        return outcome([RowError(2, "bad_value", "no")], x=floats, n=np.array([1, 2]), t=["a", "b"], b=[b"", b"\0"])

    compared = compare(made(), made(), Tolerance())
    assert (compared.rows, compared.untold, compared.differing.tolist(), list(compared.found)) == (3, 0, [], [])


def test_a_number_that_is_off_is_told_with_its_place() -> None:
    then = np.arange(12, dtype=np.int32).reshape(2, 2, 3)
    now = then.copy()
    now[1, 0, 2] += 1
    now[1, 1, 0] += 1
    assert differences(outcome(y=then), outcome(y=now)) == [(1, "y[0,2]", "8", "9")]
    assert differences(outcome(y=np.array([5])), outcome(y=np.array([6]))) == [(0, "y", "5", "6")]


def test_text_and_bytes_are_exact() -> None:
    assert differences(outcome(t=["a", "b"]), outcome(t=["a", "B"])) == [(1, "t", "'b'", "'B'")]
    assert differences(outcome(t=[b"a"]), outcome(t=[b"a "])) == [(0, "t", "b'a'", "b'a '")]


def test_long_texts_are_shown_where_they_part() -> None:
    then = "x" * 500 + "old" + "y" * 500
    ((_, _, old, new),) = differences(outcome(t=[then]), outcome(t=[then.replace("old", "new")]))
    assert old.strip("…x").startswith("old")
    assert new.strip("…x").startswith("new")
    assert max(len(old), len(new)) < 70


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ({"y": np.zeros(1)}, {"y": np.zeros(1, np.float32)}, [(0, "y", "f8[]", "f4[]")]),
        ({"y": np.zeros((1, 2))}, {"y": np.zeros((1, 3))}, [(0, "y", "f8[2]", "f8[3]")]),
        ({"y": np.zeros(1)}, {"y": ["0"]}, [(0, "y", "f8[]", "'0'")]),
        (
            {"y": np.zeros(1)},
            {"z": np.zeros(1)},
            [(0, "y", "f8[]", "no such column"), (0, "z", "no such column", "f8[]")],
        ),
    ],
)
def test_other_columns_differ(then: Any, now: Any, told: list[Any]) -> None:
    assert differences(outcome(**then), outcome(**now)) == told


def test_errors_differ_by_their_code() -> None:
    old = outcome([RowError(1, "bad_value", "one"), RowError(2, "bad_value", "two")], y=np.zeros(1))
    new = outcome([RowError(1, "bad_value", "other words"), RowError(2, "too_large", "big")], y=np.zeros(1))
    assert differences(old, new) == [(2, "", "bad_value (two)", "too_large (big)")]


def test_an_error_is_no_value() -> None:
    failed, valued = outcome([RowError(0, "operation_failed", "boom")]), outcome(y=np.zeros(1))
    assert differences(failed, valued) == [(0, "", "operation_failed (boom)", "values")]
    assert differences(valued, failed) == [(0, "", "values", "operation_failed (boom)")]
    assert differences(valued, outcome([RowError(0, "busy", "full")])) == [(0, "", "values", "busy (full)")]


@pytest.mark.parametrize("code", ["busy", "engine_down", "expired", "engine_lost", "no_worker", "error"])
def test_what_the_recording_has_no_answer_to_is_not_compared(code: str) -> None:
    compared = compare(outcome([RowError(0, code, "")]), outcome(y=np.zeros(1)), Tolerance())
    assert (compared.rows, compared.untold, list(compared.found)) == (0, 1, [])
    compared = compare(Outcome(1), outcome(y=np.zeros(1)), Tolerance())
    assert (compared.rows, compared.untold, list(compared.found)) == (0, 1, [])


@pytest.mark.parametrize("kind", DTYPES)
def test_floats_are_compared_within_the_tolerance_of_their_type(kind: str) -> None:
    then = np.full((1, 3), 100, DTYPES[kind])
    near, far = then * (1 + RTOL[kind] / 2), then * (1 + 5 * RTOL[kind])
    assert differences(outcome(y=then), outcome(y=near.astype(then.dtype))) == []
    assert len(differences(outcome(y=then), outcome(y=far.astype(then.dtype)))) == 1


def test_bfloat16_is_compared_by_its_own_tolerance() -> None:
    def made(*bits: int) -> Outcome:
        column = Column("bf16", pack_array(np.array([bits], "<u2")).d, (1, len(bits)))
        answer = Outcome(1)
        answer.add(Part.of(Reply(id=1, at=[(0, 1)], cols={"y": column})))
        return answer

    assert differences(made(0x3F80), made(0x3F82)) == []  # 1.0, 1.015625
    assert differences(made(0x3F80), made(0x3FA0)) == [(0, "y[0]", "1.0", "1.25")]


def test_what_cancels_is_measured_by_its_row() -> None:
    then, now = np.array([[1e6, 1e-3], [0, 1e-3]], np.float32), np.array([[1e6, 2e-3], [0, 2e-3]], np.float32)
    assert [row for row, *_ in differences(outcome(y=then), outcome(y=now))] == [1]
    assert len(differences(outcome(y=then), outcome(y=now), Tolerance(atol=0.0))) == 2
    assert differences(outcome(y=then), outcome(y=now), Tolerance(atol=1e-2)) == []
    assert differences(outcome(y=then), outcome(y=now), Tolerance(rtol=1.0)) == []


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_equals_itself_only(odd: float) -> None:
    for other in (0.0, 1e308, math.nan, math.inf, -math.inf):
        same = other == odd or (math.isnan(odd) and math.isnan(other))
        found = differences(outcome(y=np.array([[odd, 1e300]])), outcome(y=np.array([[other, 1e300]])))
        assert (found == []) == same, other


@given(st.lists(st.floats(width=32), min_size=1, max_size=8), st.sampled_from(list(DTYPES)))
def test_every_array_equals_itself(values: list[float], kind: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.array(values).astype(DTYPES[kind])
    for shaped in (array, array[:, None], array[None]):
        assert differences(outcome(y=shaped), outcome(y=shaped.copy()), Tolerance(0.0, 0.0)) == []


def test_a_row_without_an_answer_differs() -> None:
    assert differences(outcome(y=np.zeros(1)), Outcome(1)) == [(0, "", "values", "nothing")]


def test_null_in_json_is_any_that_is_no_number() -> None:
    def told(values: list[float], json: bool) -> Outcome:
        reply = Reply(id=1, at=[(0, 1)], cols={"y": pack(np.array([values], np.float32))})
        made = Outcome(1)
        made.add(Part.read(encode_json(reply) if json else encode(reply)))
        return made

    odd = [math.nan, math.inf, -math.inf, 0.1]
    assert differences(told(odd, True), told(odd, False)) == []
    assert differences(told(odd, True), told([0.0, *odd[1:]], False)) == [(0, "y[0]", "nan", "0.0")]
    assert differences(told([0.0, *odd[1:]], True), told(odd, False)) == [(0, "y[0]", "0.0", "nan")]


def test_empty_rows_are_equal() -> None:
    made = outcome(y=np.zeros((2, 0)))
    compared = compare(made, outcome(y=np.zeros((2, 0))), Tolerance())
    assert (compared.rows, list(compared.found)) == (2, [])
