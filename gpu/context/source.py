"""The source of the kernels: the `.cu` files beside this one.

It needs no header, so NVRTC compiles it; and what it needs of a GPU, a host compiler can be given.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from ..compiled import NUMBERS

FILES = ("rows.cu", "say.cu", "refresh.cu", "sweep.cu", "notify.cu")

THREADS = 256
"""Of a block."""

LONG, LONG_PART = 1024, 512
"""More edges than the one has a row that is added up in parts, so many edges each, by many warps."""

PART = 64
"""Edges of a row that one warp passes something on along, itself counted."""

_PRELUDE = f"""\
#define THREADS {THREADS}
#define LONG {LONG}
#define LONG_PART {LONG_PART}
#define PART {PART}
#define INFINITE __uint_as_float(0x7f800000u)
"""

_LANES = 32
_PIECES = (3, 2)  # of a row that a lane holds at once: with more of them an SM has registers for fewer warps


@cache
def source(dimension: int) -> str:
    """All kernels, as C++, for rows of so many numbers.

    The compiler is told how many: `refresh` for any number takes 128 registers a thread, and an SM has but 16 warps.
    """
    numbers = 1 if dimension % 4 else 4  # of a load: 16 bytes lie together
    pieces = -(-dimension // (_LANES * numbers))
    # As many in each part, if that can be: no lane asks then whether it has a column.
    pieces = next((each for each in _PIECES if pieces % each == 0), min(pieces, _PIECES[0]))
    shape = f"#define WIDTH {dimension}ull\n#define V {numbers}\n#define PIECES {pieces}\n"
    return "\n".join([NUMBERS, _PRELUDE, shape, *(files(__package__).joinpath(name).read_text() for name in FILES)])


@cache
def kernel_names() -> tuple[str, ...]:
    """What can be launched."""
    return tuple(re.findall(r"__global__ void __launch_bounds__\([\w, ]+\)\s+(\w+)\(", source(1)))
