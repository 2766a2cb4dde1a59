"""What the figures on a GPU host have to be; see `goals.py`."""

from __future__ import annotations

from benchmarks import front_to_front, oversize, products
from benchmarks.goals import Goal, Value
from benchmarks.ours import NAME

_FRONT = front_to_front.shape(256)


def _share(title: str, shape: str, mine: str, theirs: str, goal: float, aim: float | None = None) -> Goal:
    return Goal(title, Value(shape, mine), (Value(shape, theirs),), goal, aim)


MATRIX_GOALS = (
    Goal("256 rows of 384 f32, front to front: p50, µs", Value(_FRONT, NAME, "p50_us"), (), 250, 120, "lower"),
    Goal(
        "256 rows of 384 f32, in the engine: p50 ÷ bare copies and kernel",
        Value(_FRONT, front_to_front.ENGINE, "p50_us"),
        (Value(_FRONT, front_to_front.BARE, "p50_us"),),
        2,
        None,
        "lower",
    ),
    _share("1,024² f32, operands resident ÷ torch on all cores", "f4-1024", NAME, products.CPU, 40),
    _share("1,024² bf16, operands resident ÷ torch.bmm", "bf16-1024", NAME, products.BARE, 0.8, 0.95),
    _share("4,096² bf16, operands resident ÷ torch.bmm", "bf16-4096", NAME, products.BARE, 0.8, 0.95),
    _share("10,000 × 64² f32, operands resident ÷ torch.bmm", "f4-64", NAME, products.BARE, 0.8),
    _share("10,000 × 64² bf16, operands resident ÷ torch.bmm", "bf16-64", NAME, products.BARE, 0.8),
    _share(
        "10,000 × 64² f32, both transfers ÷ the bytes' copies", "f4-64", products.TRANSFERRED, products.PINNED, 0.7, 0.9
    ),
    _share("four times the budget ÷ memory or copies, whichever binds", oversize.SHAPE, NAME, oversize.FLOOR, 0.5, 0.8),
    Goal("four times the budget: peak ÷ budget", Value(oversize.SHAPE, NAME, "peak_of_budget"), (), 1, None, "lower"),
)
