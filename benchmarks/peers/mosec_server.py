"""Starting a mosec server: what its echo and its embedding peer share."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any

from benchmarks.contestant import Connect, Serve, Served
from benchmarks.peers.http_client import HttpClient
from benchmarks.processes import START_S, child, free_port

PATH = "/inference"
CAPACITY = 4096
TIMEOUT_MS = 30_000


def served_by(module: str, probe: bytes, *arguments: str) -> Serve:
    """The `serve` of a peer that is `python -m module`, entered once it has answered the body `probe`."""

    @contextlib.asynccontextmanager
    async def serve() -> AsyncIterator[Served]:
        port = free_port()
        with tempfile.TemporaryDirectory(prefix="mosec-") as folder:
            env = {
                "MOSEC_ADDRESS": "127.0.0.1",
                "MOSEC_PORT": str(port),
                "MOSEC_PATH": f"{folder}/ipc",
                "MOSEC_CAPACITY": str(CAPACITY),
                "MOSEC_TIMEOUT": str(TIMEOUT_MS),
                "MOSEC_LOG_LEVEL": "error",
            }
            async with child(sys.executable, "-m", module, *arguments, env=env) as server:
                await _wait_answering(server, port, probe)
                yield Served(str(port), {"service": server.pid})

    return serve


async def _wait_answering(server: asyncio.subprocess.Process, port: int, probe: bytes) -> None:
    client = HttpClient(port, PATH, bytes, bytes)
    async with asyncio.timeout(START_S):
        while server.returncode is None:
            with contextlib.suppress(OSError):
                await client.call(probe)
                client.close()
                return
            await asyncio.sleep(0.05)
    raise RuntimeError(f"mosec ended with status {server.returncode} before it answered; its errors are above")


def connecting(encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]) -> Connect:
    """The `connect` of a peer with this encoding of rows and answers."""

    @contextlib.asynccontextmanager
    async def connect(port: str) -> AsyncIterator[HttpClient]:
        client = HttpClient(int(port), PATH, encode, decode)
        yield client
        client.close()

    return connect
