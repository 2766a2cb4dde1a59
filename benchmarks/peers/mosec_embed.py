"""mosec serving MiniLM in dynamic batches: padded, as its documentation shows, or sorted by length."""

from __future__ import annotations

import itertools
import sys

import numpy as np
from numpy.typing import NDArray

from benchmarks import minilm
from benchmarks.contestant import Contestant
from benchmarks.peers.mosec_server import connecting, served_by

MAX_BATCHES = (16, 32, 64)
WAITS_MS = (2, 5, 10)
SORTED_CHUNK = 8
_MODULE = "benchmarks.peers.mosec_embed"


def main(max_batch: int, wait_ms: int, chunk: int | None) -> None:
    """The server: text as body, 1,536 bytes of float32 as answer, one worker process.

    Args:
        max_batch: most texts in a batch.
        wait_ms: longest wait for a batch to fill, in milliseconds.
        chunk: None pads a batch to its longest text; a number sorts it and runs forwards of at most so many.
    """
    from mosec import Server, Worker

    class Embed(Worker):
        def __init__(self) -> None:
            self._encoder = minilm.Encoder()

        def deserialize(self, data: bytes) -> str:
            return data.decode()

        def serialize(self, data: NDArray[np.float32]) -> bytes:
            return data.tobytes()

        def forward(self, data: list[str]) -> list[NDArray[np.float32]]:
            return list(self._encoder.embed(data, chunk))

    server = Server()  # type: ignore[no-untyped-call]
    server.append_worker(Embed, max_batch_size=max_batch, max_wait_time=wait_ms, start_method="fork")
    server.run()  # type: ignore[no-untyped-call]


def _decode(body: bytes) -> NDArray[np.float32]:
    return np.frombuffer(body, np.float32)


def _contestant(name: str, max_batch: int, wait_ms: int, chunk: int) -> Contestant:
    return Contestant(
        f"mosec-{name}-b{max_batch}-w{wait_ms}",
        served_by(_MODULE, b"a probe", str(max_batch), str(wait_ms), str(chunk)),
        connecting(str.encode, _decode),
        frozenset({"equal64", "mixed64", "one", "hangup256"}),
        needs=("mosec", *minilm.NEEDS),
    )


CONTESTANTS = tuple(
    _contestant(name, max_batch, wait_ms, chunk)
    for name, chunk in (("padded", 0), ("sorted", SORTED_CHUNK))
    for max_batch, wait_ms in itertools.product(MAX_BATCHES, WAITS_MS)
)

if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) or None)
