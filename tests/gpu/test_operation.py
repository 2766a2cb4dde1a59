"""The operation contract: parameters, lanes, and functions made operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest

from aikoryu.bus.columns import Field, field_of
from aikoryu.bus.errors import BadParameter
from aikoryu.gpu.batch import Batch
from aikoryu.gpu.device import Device
from aikoryu.gpu.operation import NoParameters, Operation, operation
from aikoryu.gpu.signature import Signature


class Plain(Operation):
    """Does nothing."""

    name = "test.plain"
    signature = Signature({"x": "f4"}, {"x": "f4"})


class Bounded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: int
    weights: list[float] = []
    level: float = 0.5


class Lists(Plain):
    """Takes a parameter that has no hash."""

    parameters = Bounded


def scale() -> Operation:
    @operation("test.scaled", inputs={"x": "T[n]"}, outputs={"y": "T[n]"}, types={"T": "f4|f8"})
    def scaled(x: Any, *, factor: float = 2.0, times: int) -> Mapping[str, Any]:
        """Scale rows."""
        return {"y": x * factor**times}

    return scaled


def test_operation_takes_no_parameters_unless_it_says_so() -> None:
    assert Plain().decode_parameters({}) == NoParameters()
    with pytest.raises(BadParameter, match=r"test\.plain takes these parameters: none"):
        Plain().decode_parameters({"x": 1})


@pytest.mark.parametrize(
    "given", [{}, {"size": "3"}, {"size": 1, "sized": 2}, {"size": 1, "level": None}, [], None, 3, {1: 2}]
)
def test_bad_parameters_are_refused_and_named(given: Any) -> None:
    with pytest.raises(BadParameter, match="takes these parameters: size, weights, level"):
        Lists().decode_parameters(given)


def test_rows_of_equal_parameters_share_a_lane() -> None:
    made = Lists()
    keys = [made.lane_key((), made.decode_parameters(given)) for given in ({"size": 1}, {"size": 1, "level": 0.5})]
    assert keys[0] == keys[1]
    assert keys[0] != made.lane_key((), made.decode_parameters({"size": 2}))


def test_lane_key_of_any_parameter_has_a_hash_and_equals_itself() -> None:
    made = Lists()
    given = {"size": 1, "weights": [1.0, 2.0], "level": float("nan")}
    keys = {made.lane_key((), made.decode_parameters(given)) for _ in range(3)}
    assert len(keys) == 1


def test_function_becomes_an_operation() -> None:
    made = scale()
    assert (made.name, made.pure, made.__doc__) == ("test.scaled", True, "Scale rows.")
    parameters = made.decode_parameters({"times": 2})
    assert (parameters.factor, parameters.times) == (2.0, 2)


def test_function_runs_on_tensors_with_parameters_as_keywords() -> None:
    made = scale()
    device = Device("cpu", 1)
    x = np.arange(4, dtype=np.float64).reshape(2, 2)
    batch = Batch(2, (("x", field_of(x)),), {"x": x}, made.decode_parameters({"times": 3}), np.ones(2, bool), device)
    answer = made.run(batch, device)
    np.testing.assert_array_equal(answer["y"].numpy(), x * 8)


@pytest.mark.parametrize("given", [{}, {"times": 1, "other": 2}, {"times": "many"}])
def test_function_parameters_are_validated(given: Any) -> None:
    with pytest.raises(BadParameter, match=r"factor, times|times, factor"):
        scale().decode_parameters(given)


def test_function_without_annotation_takes_anything() -> None:
    @operation("test.anything", inputs={"x": "f4"}, outputs={"x": "f4"}, pure=False)
    def anything(x, *, what=None):  # type: ignore[no-untyped-def]
        return {"x": x}

    assert not anything.pure
    assert anything.decode_parameters({"what": [1, "a"]}).what == [1, "a"]


def test_function_gets_text_as_a_list() -> None:
    @operation("test.length", inputs={"text": "utf8"}, outputs={"n": "i8"})
    def length(text: list[str]) -> Mapping[str, Any]:
        return {"n": np.array([len(row) for row in text])}

    batch = Batch(
        2, (("text", Field("utf8")),), {"text": ["ä", "bcd"]}, NoParameters(), np.ones(2, bool), Device("cpu", 1)
    )
    assert length.run(batch, Device("cpu", 1))["n"].tolist() == [1, 3]
