"""Kernels written in CUDA C++, compiled for the GPU at hand through CuPy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import structlog

Kernel: TypeAlias = Callable[[tuple[int, ...], tuple[int, ...], tuple[Any, ...]], None]
"""Enqueues on CuPy's current stream: blocks, threads of a block, arguments as NumPy scalars."""

NUMBERS = """\
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;
"""
"""What sources begin with: they include no header, so that NVRTC and a host's compiler take them alike."""

_log = structlog.get_logger(__name__)


def compiled(source: str, names: Iterable[str], otherwise: str) -> dict[str, Kernel] | None:
    """Kernels by name; None without CuPy, or without the compiler that it loads.

    Args:
        source: C++.
        names: of its kernels.
        otherwise: what happens without the compiler, for the log: "packets run on the host".
    """
    try:
        import cupy
    except ImportError:
        return None
    module = cupy.RawModule(code=source, options=("--std=c++17",))
    try:
        return {name: module.get_function(name) for name in names}
    except RuntimeError as error:
        _log.warning(f"{otherwise}: CuPy cannot compile", reason=str(error))
        return None
