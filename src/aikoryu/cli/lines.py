"""Lines of a file, or of stdin as they come."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from .failure import Failed

LINE_BYTES = 1 << 26  # longest line of a pipe; no server takes a larger message


async def read_lines(path: str) -> AsyncIterator[bytes]:
    """The lines that are not blank.

    Args:
        path: a file; `-` for stdin, where the loop goes on while no line is there.

    Raises:
        Failed: the file cannot be read.
    """
    if path == "-" and _can_be_awaited(sys.stdin.fileno()):
        async with pipe(sys.stdin.fileno()) as reader:
            while line := await reader.readline():
                if not line.isspace():
                    yield line
        return
    for line in _of_file(path):
        if not line.isspace():
            yield line


@asynccontextmanager
async def pipe(fd: int) -> AsyncIterator[asyncio.StreamReader]:
    """A reader of a pipe, which itself stays open."""
    reader = asyncio.StreamReader(LINE_BYTES)
    file = os.fdopen(os.dup(fd), "rb")
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), file
    )
    try:
        yield reader
    finally:
        transport.close()


def _can_be_awaited(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _of_file(path: str) -> Iterator[bytes]:
    try:
        with open(sys.stdin.fileno() if path == "-" else path, "rb", closefd=path != "-") as file:
            yield from file
    except OSError as error:
        raise Failed(f"{path} cannot be read: {error.strerror}") from None
