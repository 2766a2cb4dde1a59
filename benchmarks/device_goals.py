"""What the figures on a GPU host have to be; see `goals.py`."""

from __future__ import annotations

from benchmarks import embed_ids, front_to_front, oversize, products
from benchmarks.goals import Goal, Value
from benchmarks.ours import NAME, fronts_name

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

ONE, TWO, FOUR = map(fronts_name, (1, 2, 4))

BUS_GOALS = (
    Goal("awaited calls, 4 fronts: rows/s", Value("awaited", FOUR), (), 300_000, 500_000),
    Goal("awaited calls, 2 fronts: rows/s", Value("awaited", TWO)),
    Goal("awaited calls, 1 front: rows/s", Value("awaited", ONE)),
    Goal("awaited calls, 4 fronts: p99, ms", Value("awaited", FOUR, "p99_ms"), (), 30, None, "lower"),
    Goal("awaited calls, 1 front: p99, ms", Value("awaited", ONE, "p99_ms"), (), 30, None, "lower"),
    Goal("awaited calls, 4 fronts: rows/s ÷ plain service", Value("awaited", FOUR), (Value("awaited", "nats-*"),)),
    Goal("awaited calls, 1 front: rows/s ÷ plain service", Value("awaited", ONE), (Value("awaited", "nats-*"),)),
    Goal("call_many, 4 fronts: rows/s", Value("many", FOUR), (), 400_000, 1_000_000),
    Goal("call_many, 2 fronts: rows/s", Value("many", TWO)),
    Goal("call_many, 1 front: rows/s", Value("many", ONE)),
    Goal("one caller, 1 front: p50, ms", Value("one", ONE, "p50_ms"), (), 0.5, 0.3, "lower"),
    Goal(
        "one caller, 1 front: p50 ÷ nc.request",
        Value("one", ONE, "p50_ms"),
        (Value("one", "nats-request", "p50_ms"),),
        None,
        None,
        "lower",
    ),
    Goal("a connection an agent: rows/s of 4 fronts ÷ 1 front", Value("agents", FOUR), (Value("agents", ONE),), 2, 3),
    Goal(
        "a connection an agent, 4 fronts: rows/s ÷ plain service", Value("agents", FOUR), (Value("agents", "nats-*"),)
    ),
)

_IDS = Value(embed_ids.shape(embed_ids.LARGEST), NAME)
_ENCODE = (Value(embed_ids.TEXT_SHAPE, "encode*"),)

EMBED_GOALS = (
    Goal("24 tokens, from ids: sentences/s", _IDS, (), 200_000),
    Goal("24 tokens, from ids ÷ best path on all cores", _IDS, (Value(embed_ids.CPU_SHAPE, "*"),), 30),
    Goal("24 tokens, from ids ÷ transformers fp16", _IDS, (_IDS._replace(contestant=embed_ids.BARE),)),
    Goal("from text over NATS, 4 fronts: sentences/s", Value("texts", FOUR), (), 60_000, 100_000),
    Goal("from text over NATS, 2 fronts: sentences/s", Value("texts", TWO)),
    Goal("from text over NATS, 1 front: sentences/s", Value("texts", ONE)),
    Goal("from text over NATS, awaited singly, 4 fronts: sentences/s", Value("sentences", FOUR)),
    Goal("from text over NATS, 4 fronts ÷ encode, same GPU", Value("texts", FOUR), _ENCODE, 2, 3),
    Goal("64 callers awaiting a sentence each, 1 front: p99, ms", Value("text64", ONE, "p99_ms"), (), 5, None, "lower"),
    Goal("GPU busy under texts over NATS, 4 fronts", Value("texts", FOUR, "gpu_busy"), (), 0.8),
    Goal("SMs active under texts over NATS, 4 fronts", Value("texts", FOUR, "sm_active")),
)
