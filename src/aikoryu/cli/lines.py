"""Lines of a file, or of stdin as they come."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator, Iterator

from .failure import Failed

LINE_BYTES = 1 << 26  # longest line of a pipe: the largest message a server can be told to take


async def read_lines(path: str) -> AsyncIterator[bytes]:
    """The lines that are not blank.

    Args:
        path: a file; `-` for stdin, where the loop goes on while no line is there.

    Raises:
        Failed: the file cannot be read.
    """
    if path == "-" and _can_be_awaited(sys.stdin.fileno()):
        reader = asyncio.StreamReader(LINE_BYTES)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            if not line.isspace():
                yield line
        return
    for line in _of_file(path):
        if not line.isspace():
            yield line


def _can_be_awaited(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _of_file(path: str) -> Iterator[bytes]:
    try:
        with open(sys.stdin.fileno() if path == "-" else path, "rb", closefd=path != "-") as file:
            yield from file
    except OSError as error:
        raise Failed(f"{path} cannot be read: {error.strerror}") from None
