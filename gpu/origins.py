"""Origins: the tensors that agents put, as files that outlive the engine process.

The directory is the only truth: every engine process of a worker may use it at the same time, and a fresh one finds
what its predecessor had. A file (`origin.py`) appears whole, by its renaming.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time

import msgspec
import numpy as np

from ..bus.columns import FIXED, Array, Field, bytes_of
from ..bus.errors import BadValue, Busy, NoTensor, NotOwner, TooLarge
from .origin import FOOTER_BYTES, Draft, Origin, Seen, Upload, digest, read_behind, write_behind

BLOCK_BYTES = 4096  # what a file takes at least, and a multiple of
UPLOAD_S = 120.0  # an array of which no further part has come for so long is given up
DRAFT_S = 86400.0  # a result that has been computed for so long is nobody's any more, nor is one whose process is gone
SWEEP_S = 10.0

_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}\.[A-Za-z0-9_-]{1,64}")
_UNDONE = {"part": UPLOAD_S, "draft": DRAFT_S}  # files that are no tensors yet, by what follows the last ~


class Origins:
    """The tensors of one directory; several threads, and several processes, may share it.

    Args:
        directory: a folder of its own.
        budget_bytes: most bytes of files in it; 0 for half of what is free there now.
        clock: wall time, s.
    """

    def __init__(self, directory: Path, budget_bytes: int = 0, clock: Callable[[], float] = time) -> None:
        self.budget_bytes = budget_bytes or shutil.disk_usage(directory).free // 2
        self.used_bytes = 0
        self.count = 0
        self._directory = str(directory)
        self._clock = clock
        self._lock = threading.Lock()
        self._sweep_at = float("-inf")

    @contextmanager
    def opened(self, key: str) -> Iterator[tuple[Origin, int]]:
        """A tensor's origin and the descriptor of its file; its time to live begins anew.

        Raises:
            BadValue: that is no key.
            NoTensor: nothing lies there.
        """
        path = self._path(key)
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise missing(key) from None
        try:
            found = os.fstat(file)
            now = self._clock()
            if found.st_mtime <= now:
                self._unlink(path)
                raise missing(key)
            origin = read_behind(file, found.st_size)
            if _is_due(found.st_mtime, now, origin.ttl_s):
                os.utime(file, (now, now + origin.ttl_s))
            yield origin, file
        finally:
            os.close(file)

    def unchanged(self, key: str, seen: Seen, ttl_s: float) -> bool:
        """Whether the file seen is there still, and may be used without being opened: so it is most of the time."""
        try:
            found = os.stat(self._path(key))
        except FileNotFoundError:
            return False
        # A file that expires soon is opened, which lets its time begin anew.
        return seen == (found.st_ino, found.st_ctime_ns) and not _is_due(found.st_mtime, self._clock(), ttl_s)

    def read(self, key: str, field: Field, start: int) -> tuple[Array, int]:
        """Elements of a tensor.

        Args:
            key: which.
            field: its dtype, and the shape in which the elements are wanted.
            start: the first of them, counted in C order.

        Returns:
            A copy of this shape, and the content's version.

        Raises:
            BadValue: that is no key, or the elements are outside the tensor or of another dtype.
            NoTensor: nothing lies there.
        """
        count = math.prod(field.shape)
        dtype = FIXED[field.dtype]
        with self.opened(key) as (origin, file):
            whole = math.prod(origin.shape)
            if field.dtype != origin.dtype or start < 0 or start + count > whole:
                raise BadValue(
                    f"elements {start} to {start + count} as {field.dtype} of a tensor {origin.field} of {whole} "
                    "elements: take dtype and shape from its handle"
                )
            values = np.empty(field.shape, dtype)
            room, at = bytes_of(values), 0
            while at < len(room):
                at += os.preadv(file, [room[at:]], start * dtype.itemsize + at)
            return values, origin.version

    def write(self, key: str, origin: Origin, start: int, values: Array) -> bool:
        """Put elements of a tensor; it is there when all have come, and takes the place of the one before.

        Args:
            key: which.
            origin: of the whole.
            start: the first element's place, counted in C order.
            values: elements, flat.

        Returns:
            Whether the tensor is there now.

        Raises:
            BadValue: that is no key, or elements lie outside the shape.
            NotOwner: another's tensor lies there.
            TooLarge, Busy: it does not fit the budget, or not now.
        """
        count = math.prod(origin.shape)
        if start < 0 or start + len(values) > count:
            raise BadValue(
                f"elements {start} to {start + len(values)} of {origin.field}, which has {count}: correct it"
            )
        if self.has(key, origin):
            return True
        if len(values) < count:
            return self._write_run(key, origin, start, values)
        path = self._undone(key, f"{origin.serial}~part")
        with self._claimed(path, origin.nbytes + FOOTER_BYTES), _new(path) as file:
            os.pwrite(file, bytes_of(values), 0)
            write_behind(file, origin, origin)
        self._publish(key, origin, path)
        return True

    def _write_run(self, key: str, origin: Origin, start: int, values: Array) -> bool:
        """Add elements to a file that all engines know by its name; the one that makes it whole publishes it."""
        kind = zlib.crc32(str(origin.field).encode())
        path = self._undone(key, f"{origin.version:x}-{kind:x}-{origin.owner}~part")
        with self._locked(path, origin) as file:
            if file is None:  # another thread or engine has just published it
                return self.has(key, origin)
            os.pwrite(file, bytes_of(values), start * values.itemsize)
            upload = msgspec.json.decode(os.pread(file, os.fstat(file).st_size, origin.nbytes), type=Upload)
            upload.add(start, start + len(values))
            if upload.runs == [(0, math.prod(origin.shape))]:
                write_behind(file, origin, origin)
                self._publish(key, origin, path)
                return True
            write_behind(file, origin, upload)
            os.utime(file, (self._clock(), self._clock()))
            return False

    @contextmanager
    def _locked(self, path: str, origin: Origin) -> Iterator[int | None]:
        """An upload's file, begun if it is new, for this caller alone; None if it is no upload any more."""
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, path):
                yield None
                return
            if os.fstat(file).st_size == 0:
                size = origin.nbytes + FOOTER_BYTES
                with self._claimed(path, size):
                    os.posix_fallocate(file, 0, size)
                    write_behind(file, origin, Upload(origin, []))
            yield file
        finally:
            os.close(file)

    def draft(self, key: str, origin: Origin) -> Draft:
        """Room for a tensor, to be filled and then published or discarded by the caller.

        Raises:
            BadValue: that is no key.
            TooLarge, Busy: it does not fit the budget, or not now.
        """
        path = self._undone(key, f"{origin.serial}-{os.getpid()}~draft")
        size = origin.nbytes + FOOTER_BYTES
        with self._claimed(path, size), _new(path) as file:
            # Taken now: a page that cannot be had when the mapping is written would end the process.
            os.posix_fallocate(file, 0, size)
        return Draft(key, origin, path)

    def publish(self, draft: Draft) -> None:
        """Let everybody see a tensor.

        Raises:
            NotOwner: another's tensor came to lie there meanwhile; the draft is gone.
        """
        file = os.open(draft.path, os.O_WRONLY)
        try:
            write_behind(file, draft.origin, draft.origin)
        finally:
            os.close(file)
        self._publish(draft.key, draft.origin, draft.path)

    def discard(self, draft: Draft) -> None:
        """Give a draft's room back."""
        self._unlink(draft.path)

    def free(self, key: str, owner: str) -> bool:
        """Drop a tensor.

        Returns:
            Whether it was there.

        Raises:
            BadValue: that is no key.
            NotOwner: it is another's.
        """
        try:
            with self.opened(key) as (origin, _):
                if origin.owner != digest(owner):
                    raise NotOwner(f"tensor {key!r} was put by another: only its owner may free it")
        except NoTensor:
            return False
        self._unlink(self._path(key))
        return True

    def tidy(self) -> set[str] | None:
        """Drop what has expired, if it is time to look.

        Returns:
            The keys that are left, or None if it was not.
        """
        with self._lock:
            return self._sweep() if self._clock() >= self._sweep_at else None

    def has(self, key: str, origin: Origin) -> bool:
        """Whether this very content lies there already."""
        try:
            with self.opened(key) as (found, _):
                if found.owner != origin.owner:
                    raise NotOwner(f"tensor {key!r} was put by another: only its owner may replace it")
                return (found.version, found.field) == (origin.version, origin.field)
        except NoTensor:
            return False

    def _publish(self, key: str, origin: Origin, path: str) -> None:
        """Give a file that is whole its name; one of another owner's is there already: remove it."""
        try:
            self.has(key, origin)
        except NotOwner:
            self._unlink(path)
            raise
        now = self._clock()
        os.utime(path, (now, now + origin.ttl_s))
        with self._lock:
            self._forget(self._path(key))
            os.replace(path, self._path(key))
            self.count += 1

    def _path(self, key: str) -> str:
        if _KEY.fullmatch(key) is None:
            raise BadValue(f"key {key[:140]!r}: write <group>.<name>, each of 1 to 64 letters, digits, '_' and '-'")
        return f"{self._directory}/{key}"

    def _undone(self, key: str, what: str) -> str:
        return f"{self._path(key)}.{what}"

    @contextmanager
    def _claimed(self, path: str, size: int) -> Iterator[None]:
        """Room for a file that is written inside; if that fails, room and file are given back."""
        taken = 0
        try:
            with self._lock:
                self._claim(size)
            taken = _charge(size)
            yield
        except BaseException as error:
            with self._lock:
                self.used_bytes -= taken
            _remove(path)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise Busy("the disk that keeps tensors is full: free some, or ask the operator for room") from None
            raise

    def _claim(self, size: int) -> None:
        """Count a file of this size in."""
        charge = _charge(size)
        if charge > self.budget_bytes:
            raise TooLarge(
                f"the tensor takes {size} bytes, the worker keeps {self.budget_bytes}: put it in smaller tensors, "
                "or raise residents.host_bytes"
            )
        if self.used_bytes + charge > self.budget_bytes:
            self._sweep()
        if self.used_bytes + charge > self.budget_bytes:
            raise Busy(
                f"the worker's {self.budget_bytes} bytes for tensors are taken: free some, give them a shorter ttl_s, "
                "or raise residents.host_bytes"
            )
        self.used_bytes += charge

    def _unlink(self, path: str) -> None:
        with self._lock:
            self._forget(path)
            _remove(path)

    def _forget(self, path: str) -> None:
        """Count a file out that is about to go."""
        with suppress(FileNotFoundError):
            self.used_bytes -= _charge(os.stat(path).st_size)
            self.count -= path.rpartition("~")[2] not in _UNDONE

    def _sweep(self) -> set[str]:
        """Look at every file: drop what has expired, and count the rest."""
        now = self._clock()
        used, keys = 0, set()
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process drops files, too
                    if entry.is_dir():  # what is kept beside tensors
                        continue
                    found = entry.stat()
                    kind = entry.name.rpartition("~")[2]
                    left = kind == "draft" and _maker_is_gone(entry.name)
                    if left or found.st_mtime + _UNDONE.get(kind, 0.0) <= now:
                        os.unlink(entry.path)
                        continue
                    used += _charge(found.st_size)
                    if kind not in _UNDONE:
                        keys.add(entry.name)
        self.used_bytes, self.count = used, len(keys)
        self._sweep_at = now + SWEEP_S
        return keys


def missing(key: str) -> NoTensor:
    """The error for a key under which nothing lies."""
    return NoTensor(f"no tensor {key!r} is here: it has expired, was freed, or went with its worker: put it again")


@contextmanager
def _new(path: str) -> Iterator[int]:
    """The descriptor of a new file."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _maker_is_gone(draft: str) -> bool:
    """Whether the engine process that a draft's name tells of has ended."""
    pid = draft.removesuffix("~draft").rpartition("-")[2]
    return not os.path.exists(f"/proc/{pid}")


def _is_at(file: int, path: str) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _is_due(expires: float, now: float, ttl_s: float) -> bool:
    """Whether a use lets the time to live begin anew; not each of many uses in a row does."""
    return expires < now + 0.9 * ttl_s


def _charge(size: int) -> int:
    """Bytes that a file of this size takes."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES
