"""A worker's own directory: for what engines keep on disk, gone with the worker.

A worker that was killed cannot remove its own, so the next one does: a directory whose lock nobody holds is nobody's.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import tempfile
import weakref
from pathlib import Path

from .folder_lock import folder_lock


class WorkerDirectory:
    """A folder for one worker.

    Args:
        base: where it shall lie; empty for the system's folder of temporary files.

    Attributes:
        path: the folder, there between `open` and `close`.
    """

    def __init__(self, base: str) -> None:
        self._root = Path(base or tempfile.gettempdir()) / f"aikoryu-{os.getuid()}"
        self.path = self._root / secrets.token_hex(8)
        self._lock = -1

    def open(self) -> None:
        """Make the folder, and remove those of workers that are no more.

        Raises:
            RuntimeError: the base does not exist, has no room, or is not safe; the message says what to change.
        """
        try:
            self._open()
        except OSError as error:
            raise RuntimeError(f"no folder for tensors can be made: {error}: set residents.directory") from error

    def _open(self) -> None:
        self._root.mkdir(mode=0o700, exist_ok=True)
        found = self._root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{self._root} must be a folder that this user alone may enter")
        with folder_lock(self._root):  # nobody's folder is made, and not yet locked, while others are removed
            for path in self._root.iterdir():
                _remove_if_left(path)
            self.path.mkdir(mode=0o700)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove the folder and all that is in it. Idempotent."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def directory_of(owner: object, given: str) -> Path:
    """Where what an engine keeps on disk lies.

    Args:
        owner: who keeps it.
        given: the worker's own; empty for one that goes with the owner, at the latest with the process.

    Raises:
        RuntimeError: none can be made, as `WorkerDirectory.open`.
    """
    if given:
        return Path(given)
    made = WorkerDirectory("")
    made.open()
    weakref.finalize(owner, made.close)
    return made.path


def _remove_if_left(path: Path) -> None:
    """Remove a folder unless a worker holds its lock."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
