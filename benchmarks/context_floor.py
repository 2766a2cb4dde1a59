"""What a sweep over all rows cannot do without: to read the rows of Z that each agent hears, and to add them up."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from aikoryu.gpu.context.graph import ContextGraph, blocks
from benchmarks.context_graphs import DIMENSION

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE = (2, 4, 8)
"""Rows that are on their way to a warp at the same time: whichever is fastest is the floor."""

THREADS = 256
ROUNDING = 1e-2

# A warp a row, 16 bytes a lane and load; of each sum one number is written, so that nothing is left out.
_SOURCE = f"""
#define PIECES {DIMENSION // 128}
template <int AT_ONCE>
__device__ static inline void gathered(const float4* z, unsigned long long rows, const long long* start,
                                       const long long* count, const int* other, float* sums) {{
    const unsigned long long row = ((unsigned long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;
    const int lane = threadIdx.x % 32;
    float4 sum[PIECES];
    for (int piece = 0; piece < PIECES; piece++) sum[piece] = __ldg(z + row * (PIECES * 32) + piece * 32 + lane);
    const long long end = start[row] + count[row];
    for (long long from = start[row]; from < end; from += 32) {{
        const int mine = from + lane < end ? other[from + lane] : 0;
        const int many = end - from < 32 ? (int)(end - from) : 32;
        int next = 0;
        for (; next + AT_ONCE <= many; next += AT_ONCE) {{
            float4 read[AT_ONCE][PIECES];
            _Pragma("unroll") for (int one = 0; one < AT_ONCE; one++) {{
                const float4* at = z + (unsigned long long)__shfl_sync(~0u, mine, next + one) * (PIECES * 32) + lane;
                _Pragma("unroll") for (int piece = 0; piece < PIECES; piece++)
                    read[one][piece] = __ldg(at + piece * 32);
            }}
            _Pragma("unroll") for (int one = 0; one < AT_ONCE; one++)
                _Pragma("unroll") for (int piece = 0; piece < PIECES; piece++) {{
                    sum[piece].x += read[one][piece].x, sum[piece].y += read[one][piece].y;
                    sum[piece].z += read[one][piece].z, sum[piece].w += read[one][piece].w;
                }}
        }}
        for (; next < many; next++) {{
            const float4* at = z + (unsigned long long)__shfl_sync(~0u, mine, next) * (PIECES * 32) + lane;
            _Pragma("unroll") for (int piece = 0; piece < PIECES; piece++) {{
                const float4 read = __ldg(at + piece * 32);
                sum[piece].x += read.x, sum[piece].y += read.y, sum[piece].z += read.z, sum[piece].w += read.w;
            }}
        }}
    }}
    float all = 0;
    for (int piece = 0; piece < PIECES; piece++) all += sum[piece].x + sum[piece].y + sum[piece].z + sum[piece].w;
    for (int far = 16; far; far /= 2) all += __shfl_xor_sync(~0u, all, far);
    if (!lane) sums[row] = all;
}}
""" + "".join(
    f"""
extern "C" __global__ void __launch_bounds__({THREADS}) gathered_{at_once}(
    const float4* z, unsigned long long rows, const long long* start, const long long* count, const int* other,
    float* sums) {{
    gathered<{at_once}>(z, rows, start, count, other, sums);
}}
"""
    for at_once in AT_ONCE
)


def floors(graph: ContextGraph) -> dict[str, Callable[[], Any]]:
    """What reads and adds up, by name."""
    if graph.table.norm.is_cuda:
        return {f"{at_once} rows at once": lambda at_once=at_once: gathered(graph, at_once) for at_once in AT_ONCE}  # type: ignore[misc]
    return {"embedding_bag": lambda: _summed(graph)}


def gathered(graph: ContextGraph, at_once: int) -> Tensor:
    """(used,) float32, of each row of Z and those that it hears the sum of all numbers."""
    import torch

    used, heard, z = graph.slots.used, graph.edges.heard, graph.table.blended
    sums = torch.empty(used, dtype=torch.float32, device=z.device)
    pointers = (heard.start, heard.count, heard.other, sums)
    words = (z.data_ptr(), used, *(pointer.data_ptr() for pointer in pointers))
    _kernel(at_once)((-(-used * 32 // THREADS),), (THREADS,), tuple(map(np.uint64, words)))
    return sums


def misread(graph: ContextGraph) -> int:
    """Of the floors on a GPU, rows whose sum is not what torch says."""
    import torch

    used, heard = graph.slots.used, graph.edges.heard
    if not graph.table.norm.is_cuda:
        return 0
    rows = graph.table.blended[:used].sum(1)
    owner, position = heard.entries(torch.arange(used, device=rows.device))
    expected = rows.index_add(0, owner, rows[heard.other[position].long()])
    return sum(int(((gathered(graph, each) - expected).abs() > ROUNDING).sum()) for each in AT_ONCE)


def _summed(graph: ContextGraph) -> None:
    import torch
    from torch.nn.functional import embedding_bag

    if not graph.edges.heard.is_compact:
        graph.edges.heard.compact()
    used, heard = graph.slots.used, graph.edges.heard
    for _, edges, ends in blocks(torch.cat([heard.start[:used], heard.count[:used].sum()[None]])):
        embedding_bag(heard.other[edges], graph.table.blended, ends.int(), mode="sum", include_last_offset=True)


@cache
def _kernel(at_once: int) -> Any:
    import cupy

    return cupy.RawModule(code=_SOURCE, options=("--std=c++17",)).get_function(f"gathered_{at_once}")
