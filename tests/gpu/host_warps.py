"""The kernels of a context graph without a GPU: the same source, compiled for the host, where a warp is 32 coroutines.

Each lane runs until its warp does something together, and warp follows warp; so every kernel is what it is on a GPU,
but that no two of its lanes write at the same time.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from aikoryu.gpu.context.kernels import Launch
from aikoryu.gpu.context.source import THREADS, kernel_names, source

COMPILER = shutil.which("g++") or shutil.which("clang++")
MOST_WARPS = 3 * THREADS // 32  # of a launch: what is left takes another turn of a kernel's loop

_HOST = """
#include <csetjmp>
#include <cmath>
#include <cstring>
#include <ucontext.h>
#define __global__
#define __device__
#define __launch_bounds__(...)
struct Dim { unsigned x; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static Dim blockIdx, threadIdx, blockDim, gridDim;

template <class T> static T __ldg(const T* from) { return *from; }
template <class T> static T __ldcs(const T* from) { return *from; }
template <class T> static void __stcs(T* to, T what) { *to = what; }
static int __popc(unsigned bits) { return __builtin_popcount(bits); }
static int __ffs(int bits) { return __builtin_ffs(bits); }
static float __uint_as_float(unsigned bits) { float number; memcpy(&number, &bits, 4); return number; }
static unsigned __float_as_uint(float number) { unsigned bits; memcpy(&bits, &number, 4); return bits; }
template <class T, class U> static T atomicAdd(T* at, U more) { const T was = *at; *at = was + (T)more; return was; }
static int atomicExch(int* at, int value) { const int was = *at; *at = value; return was; }
template <class T> static T atomicMax(T* at, T value) { const T was = *at; if (value > was) *at = value; return was; }

// Lanes take turns; one that needs what the others have leaves its own, and goes on when all have come there.
static ucontext_t back_to, born[32];
static jmp_buf at_home, asleep[32];
static unsigned long long left_by[2][32];
static unsigned turns[32], first_thread;
static int lane, ended;
static bool has_begun[32], has_ended[32];
static char stacks[32][1 << 16];

static const unsigned long long* met(unsigned long long mine) {
    const int self = lane, side = turns[self]++ & 1;  // of who is still looking at the last one, nothing is overwritten
    left_by[side][self] = mine;
    if (!_setjmp(asleep[self])) _longjmp(at_home, 1);
    return left_by[side];
}
template <class T> static T shuffled(T mine, int from) {
    unsigned long long word = 0;
    memcpy(&word, &mine, sizeof(T));
    const unsigned long long* all = met(word);
    T got;
    memcpy(&got, &all[from], sizeof(T));
    return got;
}
template <class T> static T __shfl_sync(unsigned, T mine, int from) { return shuffled(mine, from); }
template <class T> static T __shfl_xor_sync(unsigned, T mine, int by) { return shuffled(mine, lane ^ by); }
static unsigned __ballot_sync(unsigned, bool mine) {
    const unsigned long long* all = met(mine);
    unsigned found = 0;
    for (int each = 0; each < 32; each++) found |= (unsigned)all[each] << each;
    return found;
}
"""

_WARPS = """
static void (*kernel)(const u64*);
static const u64* arguments;
static void live() {
    kernel(arguments);
    has_ended[lane] = true;
    _longjmp(at_home, 1);
}
static bool run_warp(unsigned thread) {
    first_thread = thread;
    for (lane = 0; lane < 32; lane++) has_begun[lane] = has_ended[lane] = false, turns[lane] = 0;
    for (ended = 0; ended < 32;) {
        ended = 0;
        for (volatile int next = 0; next < 32; next = next + 1) {
            lane = next;
            threadIdx.x = first_thread + lane;
            if (!_setjmp(at_home)) {
                if (has_begun[lane]) _longjmp(asleep[lane], 1);
                has_begun[lane] = true;
                getcontext(&born[lane]);
                born[lane].uc_stack.ss_sp = stacks[lane];
                born[lane].uc_stack.ss_size = sizeof stacks[lane];
                born[lane].uc_link = &back_to;
                makecontext(&born[lane], live, 0);
                setcontext(&born[lane]);
            }
            ended += has_ended[next];
        }
        // Lanes of a warp meet equally often, or they would wait for each other for ever.
        for (int each = 1; each < 32; each++)
            if (turns[each] != turns[0] || has_ended[each] != has_ended[0]) return false;
    }
    return true;
}
extern "C" int launch(void (*which)(const u64*), unsigned blocks, const u64* given, int backwards) {
    kernel = which, arguments = given, blockDim.x = THREADS, gridDim.x = blocks;
    for (unsigned number = 0; number < blocks * (THREADS / 32); number++) {
        const unsigned warp = backwards ? blocks * (THREADS / 32) - 1 - number : number;
        blockIdx.x = warp / (THREADS / 32);
        if (!run_warp(warp % (THREADS / 32) * 32)) return 1;
    }
    return 0;
}
"""


@cache
def compiled(dimension: int, *, backwards: bool = False) -> Launch:
    """What launches the kernels.

    Args:
        dimension: of rows.
        backwards: the last warp runs first: what a kernel does must not depend on it.
    """
    library = _library(dimension)

    def launch(name: str, warps: int, arguments: Sequence[np.uint64]) -> None:
        blocks = -(-min(warps, MOST_WARPS) * 32 // THREADS)
        given = np.array(arguments, np.uint64)
        kernel = ctypes.cast(getattr(library, f"run_{name}"), ctypes.c_void_p)
        pointer = given.ctypes.data_as(ctypes.c_void_p)
        assert not library.launch(kernel, ctypes.c_uint(blocks), pointer, ctypes.c_int(backwards)), "lanes go apart"

    return launch


@cache
def _library(dimension: int) -> ctypes.CDLL:
    assert COMPILER is not None, "tests skip without one"
    with tempfile.TemporaryDirectory() as folder:  # a library that is loaded needs no file
        code, library = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
        runs = [f'extern "C" void run_{name}(const u64* a) {{ {name}({_passed(name)}); }}\n' for name in kernel_names()]
        code.write_text(_HOST + source(dimension) + "".join(runs) + _WARPS)
        # A lane's numbers are read and written where the same condition holds, which GCC does not see.
        spurious = ["-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-maybe-uninitialized"]
        spurious += ["-Wno-unknown-warning-option"]  # of which clang does not know all
        command = (COMPILER, "-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Werror", *spurious)
        subprocess.run([*command, "-shared", "-fPIC", "-o", str(library), str(code)], check=True)
        return ctypes.CDLL(str(library))


def _passed(name: str) -> str:
    """A kernel's arguments, cast from words."""
    found = re.search(rf"__launch_bounds__\([\w, ]+\)\s+{name}\(([^)]*)\)", source(1))
    assert found is not None
    kinds = [" ".join(each.replace("*", " * ").split()[:-1]) for each in found[1].split(",")]
    return ", ".join(f"({kind})a[{number}]" for number, kind in enumerate(kinds))
