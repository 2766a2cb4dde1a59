"""The source of the kernels: the `.cu` files beside this one.

It needs no header, so NVRTC compiles it; and what it needs of a GPU, a host compiler can be given.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

FILES = ("rows.cu", "refresh.cu", "sweep.cu", "notify.cu")

THREADS = 256
"""Of a block."""

LONG, LONG_PART = 1024, 512
"""More edges than the one has a row that is added up in parts, so many edges each, by many warps."""

PART = 64
"""Edges of a row that one warp passes something on along, itself counted."""

_PRELUDE = f"""\
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;
#define THREADS {THREADS}
#define LONG {LONG}
#define LONG_PART {LONG_PART}
#define PART {PART}
#define INFINITE __uint_as_float(0x7f800000u)
"""


@cache
def source() -> str:
    """All kernels, as C++."""
    return "\n".join([_PRELUDE, *(files(__package__).joinpath(name).read_text() for name in FILES)])


@cache
def kernel_names() -> tuple[str, ...]:
    """What can be launched."""
    return tuple(re.findall(r"__global__ void __launch_bounds__\(THREADS\)\s+(\w+)\(", source()))
