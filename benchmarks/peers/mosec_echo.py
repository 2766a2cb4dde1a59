"""mosec echoing raw bytes in batches of at most 256 within 2 ms, loaded by `wrk` where it is installed."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestant import Contestant, Served
from benchmarks.peers.mosec_server import PATH, connecting, served_by
from benchmarks.processes import REPORT_S, child
from benchmarks.record import QUANTILES
from benchmarks.shapes import ROW_BYTES, ROW_FLOATS, Shape

MAX_ROWS = 256
WINDOW_MS = 2

WRK_SCRIPT = """
wrk.method = "POST"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
function done(summary, latency, requests)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format("\\nresult %d %d %d", summary.requests, summary.duration, failed))
  for _, percentile in ipairs({{50, 90, 99, 99.9, 100}}) do io.write(" ", latency:percentile(percentile)) end
end
"""


def main() -> None:
    """The server: deserialising and serialising are left out, as a user with raw bytes would do."""
    from mosec import Server, Worker

    class Echo(Worker):
        def deserialize(self, data: bytes) -> bytes:
            return data

        def serialize(self, data: bytes) -> bytes:
            return data

        def forward(self, data: list[bytes]) -> list[bytes]:
            rows = np.stack([np.frombuffer(row, np.float32) for row in data])
            return [row.tobytes() for row in rows]

    server = Server()  # type: ignore[no-untyped-call]
    server.append_worker(Echo, max_batch_size=MAX_ROWS, max_wait_time=WINDOW_MS, start_method="fork")
    server.run()  # type: ignore[no-untyped-call]


async def load_with_wrk(served: Served, shape: Shape, seconds: float) -> dict[str, Any] | None:
    """One sample from `wrk` with a thread and a connection for each row in flight; None where it is not installed.

    It is a C program that sends one fixed row and checks no value, which favours mosec.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        return None
    duration_s = max(1, round(seconds))
    command = (wrk, "-t1", f"-c{shape.rows_in_flight}", f"-d{duration_s}s")
    with _post_script() as script:
        async with child(*command, "-s", script, f"http://127.0.0.1:{served.address}{PATH}") as process:
            output, _ = await asyncio.wait_for(process.communicate(), duration_s + REPORT_S)
    requests, duration_us, failed, *latencies_us = map(float, output.decode().rsplit("\nresult ", 1)[1].split())
    return {
        "generator": "wrk, values not checked",
        "rows_per_s": round(requests / duration_us * 1e6, 1),
        "calls": int(requests),
        **{f"{name}_ms": us / 1e3 for name, us in zip(QUANTILES, latencies_us, strict=True)},
        "mismatches": 0,
        "errors": int(failed),
        "unanswered": 0,
        "first_error": None,
    }


@contextlib.contextmanager
def _post_script() -> Iterator[str]:
    """A script for `wrk` that posts one random row, and reports its quantiles in the order of `QUANTILES`."""
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder, "body"), Path(folder, "post.lua")
        body.write_bytes(np.random.default_rng(0).standard_normal(ROW_FLOATS, dtype=np.float32).tobytes())
        script.write_text(WRK_SCRIPT.format(body=body))
        yield str(script)


def _decode(body: bytes) -> Any:
    return np.frombuffer(body, np.float32)


CONTESTANTS = (
    Contestant(
        "mosec",
        served_by("benchmarks.peers.mosec_echo", bytes(ROW_BYTES)),
        connecting(np.ndarray.tobytes, _decode),
        frozenset({"row512", "row64", "one"}),
        needs=("mosec",),
        generator=load_with_wrk,
    ),
)

if __name__ == "__main__":
    main()
