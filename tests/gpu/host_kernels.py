"""The kernels without a GPU: the same source, compiled for the host, a thread after the other."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from aikoryu.gpu.packets.source import kernel_names, source

COMPILER = shutil.which("g++") or shutil.which("clang++")

_HOST = """
#define __global__
#define __device__
#define __ffsll __builtin_ffsll
struct Dim { unsigned x; };
static Dim blockIdx, threadIdx, blockDim = {1};
static unsigned long long atomicCAS(unsigned long long* at, unsigned long long expected, unsigned long long value) {
    const unsigned long long was = *at;
    if (was == expected) *at = value;
    return was;
}
"""


@cache
def compiled(*, backwards: bool = False) -> Callable[[str, int, Sequence[Any]], None]:
    """What launches the kernels, as `kernels.Launch` has it.

    Args:
        backwards: the last thread runs first: what a kernel does must not depend on it.
    """
    with tempfile.TemporaryDirectory() as folder:  # a library that is loaded needs no file
        return _compiled(Path(folder), "threads - 1 - thread" if backwards else "thread")


def _compiled(folder: Path, order: str) -> Callable[[str, int, Sequence[Any]], None]:
    assert COMPILER is not None, "tests skip without one"
    code, library = folder / "kernels.cpp", folder / "kernels.so"
    # Loops over threads are the compiler's too: a call from Python takes longer than a packet.
    loops = [
        f'extern "C" void all_{name}(unsigned threads, const u64* a) {{\n'
        f"    for (unsigned thread = 0; thread < threads; thread++) {{\n"
        f"        blockIdx.x = {order};\n        {name}({_passed(name)});\n    }}\n}}\n"
        for name in kernel_names()
    ]
    code.write_text(_HOST + source() + "".join(loops))
    command = [COMPILER, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(code)], check=True)
    found = ctypes.CDLL(str(library))

    def launch(name: str, threads: int, arguments: Sequence[Any]) -> None:
        words = np.array([int(argument) for argument in arguments], np.uint64)
        getattr(found, f"all_{name}")(ctypes.c_uint(threads), words.ctypes.data_as(ctypes.c_void_p))

    return launch


def _passed(name: str) -> str:
    """A kernel's arguments, cast from words."""
    text = source()
    keys = text.partition("#define KEY_ARGUMENTS")[2].partition("#define KEYS")[0].replace("\\\n", " ")
    declared = text.partition(f"__global__ void {name}(")[2].partition(") {")[0].replace("KEY_ARGUMENTS", keys)
    kinds = [" ".join(each.replace("*", " * ").split()[:-1]) for each in declared.split(",")]
    return ", ".join(f"({kind})a[{number}]" for number, kind in enumerate(kinds))
