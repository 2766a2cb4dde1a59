"""What goes on, told on stderr: it is no part of the output, and nothing ends because nobody reads it."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import suppress

PLAIN_EVERY_S = 1.0


def say(text: str) -> None:
    """Tell one thing."""
    _write(f"{text}\n")


class Progress:
    """One line that is written anew on a terminal; elsewhere a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._written = False
        self._last_s = float("-inf")

    def show(self, text: str) -> None:
        """The state is now this."""
        if self._terminal:
            width = shutil.get_terminal_size((100, 24)).columns
            _write(f"\r\x1b[K{text[: width - 1]}")
            self._written = True
        elif time.monotonic() >= self._last_s + PLAIN_EVERY_S:
            self._last_s = time.monotonic()
            say(text)

    def close(self) -> None:
        """Take the line away; what follows starts on a fresh one."""
        if self._written:
            _write("\r\x1b[K")
            self._written = False


def _write(text: str) -> None:
    with suppress(OSError, ValueError):  # its reader has gone, or it is closed
        print(text, end="", file=sys.stderr, flush=True)
