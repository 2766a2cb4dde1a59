"""The intake: what fronts hand over to an engine, and which of it runs next."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec
import structlog

from .device import Device
from .executor import Piece
from .job import ControlSocket, Done, Hello, Inject, Job, Ready, Report
from .slab import Slab

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid

_log = structlog.get_logger(__name__)


class FrontConnection:
    """A front, and the slabs it shares with this engine.

    The device learns of them one by one, while nothing waits or when a batch lies in one: page-locking them all takes a
    third of a second on a GPU, for which the batches of every front would wait when an engine takes over from another.

    Attributes:
        control: its socket.
        slabs: by number.
    """

    def __init__(
        self, control: ControlSocket, slabs: list[Slab], device: Device, wait_to_write: Callable[[ControlSocket], None]
    ) -> None:
        self.control = control
        self._wait_to_write = wait_to_write
        self.slabs = slabs
        self._device = device
        self._running = 0
        self._gone = False
        self._new = list(slabs)
        self._registered: list[Slab] = []

    def begin(self, slab: Slab) -> None:
        """A batch of it that lies in this slab is about to run: its slabs are in use."""
        self._running += 1
        if slab in self._new:
            self._register(slab)

    def register_next(self) -> bool:
        """Let the device learn of one more slab; false if it knows them all."""
        if self._new:
            self._register(self._new[-1])  # a front uses its last one first
        return bool(self._new)

    def answer(self, done: Done) -> None:
        """A batch of it has ended."""
        self._running -= 1
        self._release()
        self._send(done)

    def report(self, report: Report) -> None:
        """Tell it the engine's figures."""
        self._send(report)

    def leave(self) -> None:
        """It is gone: let go of its slabs, once nothing runs over them."""
        self._gone = True
        self._release()

    def _send(self, message: Done | Report) -> None:
        if not self._gone:
            try:
                if not self.control.send_soon(message):
                    self._wait_to_write(self.control)
            except OSError:  # it is gone, or has stopped reading: its end is seen where it is read
                with suppress(OSError):
                    self.control.sock.shutdown(socket.SHUT_RDWR)

    def _register(self, slab: Slab) -> None:
        self._new.remove(slab)
        try:
            self._device.register(slab)
        except OSError as error:
            _log.warning("slab not page-locked, copies of its batches take longer", error=str(error))
        else:
            self._registered.append(slab)

    def _release(self) -> None:
        if self._gone and self._running == 0:
            for slab in self._registered:
                self._device.unregister(slab)
            for slab in self.slabs:
                slab.close()
            self.slabs, self._new, self._registered = [], [], []


class Handed:
    """A batch that a front handed over.

    Raises:
        ValueError: it lies in no slab of the front's.
    """

    __slots__ = ("front", "job")

    def __init__(self, front: FrontConnection, job: Job) -> None:
        if not 0 <= job.slab < len(front.slabs):
            raise ValueError(f"slab {job.slab} of {len(front.slabs)}")
        self.front = front
        self.job = job

    @property
    def piece(self) -> Piece:
        """The batch and the slab it lies in."""
        return Piece(self.job, self.front.slabs[self.job.slab])


class Intake:
    """Batches of all fronts.

    Args:
        lifeline: closed by the host to end the engine.
        listener: where fronts connect.
        device: learns of their slabs.
        max_rows: most rows that may run together with a batch's.
        pulse: what every front is given to see when a batch was last begun.

    Attributes:
        ended: the host has closed the lifeline.
        on_inject: takes the faults that a front asks for; unless it is set, they are ignored.
    """

    def __init__(
        self,
        lifeline: ControlSocket,
        listener: socket.socket,
        device: Device,
        max_rows: Callable[[Job], int],
        pulse: Slab,
    ) -> None:
        self._lifeline = lifeline.sock
        self._listener = listener
        self._device = device
        self._max_rows = max_rows
        self._pulse = pulse
        self._waiting: deque[Handed] = deque()
        self._fronts: dict[int, FrontConnection] = {}  # by file descriptor
        self._strangers: dict[int, ControlSocket] = {}  # connected, but have not greeted
        self._new: deque[FrontConnection] = deque()  # of whose slabs the device does not know all
        self.ended = False
        self.on_inject: Callable[[Inject], None] = _ignore
        self._poll = select.epoll()
        self._poll.register(self._lifeline, select.EPOLLIN)
        self._poll.register(listener, select.EPOLLIN)

    def take(self, wait: bool) -> list[Handed]:
        """Take a batch, and all others that may run together with it.

        Args:
            wait: until there is one, or the engine is to end; for an engine on which nothing runs. On another a batch
                that is to run alone is not taken, nor any behind it: what runs is let come to its end.
        """
        self._look(wait=wait and not self._waiting and not self._new)
        while wait and not self._waiting and not self.ended:
            if self._new and not self._new[0].register_next():
                self._new.popleft()
            self._look(wait=not self._new)
        if self.ended or not self._waiting or (self._waiting[0].job.alone and not wait):
            return []
        return self._next()

    def report(self, figures: dict[str, float]) -> None:
        """Tell every front the engine's figures."""
        for front in list(self._fronts.values()):
            front.report(Report(figures))

    def _next(self) -> list[Handed]:
        first = self._waiting.popleft()
        taken, left, rows = [first], deque[Handed](), first.job.rows
        if self._waiting and not first.job.alone:
            most, lane = self._max_rows(first.job), first.job.lane
            for handed in self._waiting:
                if rows + handed.job.rows <= most and handed.job.lane == lane and not handed.job.alone:
                    taken.append(handed)
                    rows += handed.job.rows
                else:
                    left.append(handed)
            self._waiting = left
        for handed in taken:
            handed.front.begin(handed.piece.slab)
        return taken

    def _look(self, wait: bool) -> None:
        for fd, events in self._poll.poll(None if wait else 0):
            if events & select.EPOLLOUT:
                self._write(fd)
            if not events & ~select.EPOLLOUT:
                continue
            if fd == self._lifeline.fileno():
                self.ended = True
            elif fd == self._listener.fileno():
                self._accept()
            elif fd in self._strangers:
                self._greet(self._strangers[fd])
            else:
                self._read(fd)

    def _wait_to_write(self, control: ControlSocket) -> None:
        """A front has not read everything: send the rest when it has."""
        self._poll.modify(control.sock, select.EPOLLIN | select.EPOLLOUT)

    def _write(self, fd: int) -> None:
        control = self._fronts[fd].control
        with suppress(OSError):  # its end is seen where it is read
            if control.flush():
                self._poll.modify(fd, select.EPOLLIN)

    def _read(self, fd: int) -> None:
        front = self._fronts[fd]
        try:
            for message in front.control.receive():
                if isinstance(message, Job):
                    self._waiting.append(Handed(front, message))
                elif isinstance(message, Inject):
                    self.on_inject(message)
        except BlockingIOError:
            return
        except (EOFError, OSError, ValueError, msgspec.DecodeError) as error:
            if not isinstance(error, EOFError | OSError):
                _log.error("front speaks another language, its connection is closed", error=str(error))
            self._poll.unregister(fd)
            del self._fronts[fd]
            self._waiting = deque(handed for handed in self._waiting if handed.front is not front)
            front.control.sock.close()
            front.leave()

    def _accept(self) -> None:
        """A connection comes; it is a front once it has greeted."""
        sock, _ = self._listener.accept()
        try:
            _check_peer(sock)
        except PermissionError as error:
            _log.warning("front not accepted", error=str(error))
            sock.close()
            return
        sock.setblocking(False)
        self._strangers[sock.fileno()] = ControlSocket(sock)
        self._poll.register(sock, select.EPOLLIN)

    def _greet(self, control: ControlSocket) -> None:
        """A connection speaks for the first time."""
        fd = control.sock.fileno()
        del self._strangers[fd]
        slabs: list[Slab] = []
        try:
            hello, fds = control.receive_greeting(Hello)
            for number, each in enumerate(fds):
                try:
                    slabs.append(Slab(each, hello.slab_bytes))
                except BaseException:
                    for left in fds[number:]:
                        os.close(left)
                    raise
            front = FrontConnection(control, slabs, self._device, self._wait_to_write)
            control.greet(Ready(self._device.name, os.getpid()), [self._pulse.fd])
        except (EOFError, OSError, ValueError, msgspec.DecodeError) as error:
            _log.warning("front not accepted", error=str(error))
            for slab in slabs:
                slab.close()
            self._poll.unregister(fd)
            control.sock.close()
            return
        self._fronts[fd] = front
        self._new.append(front)


def _ignore(inject: Inject) -> None:
    _log.warning("faults ignored: this engine was started without faults.enabled", rules=len(inject.rules))


def _check_peer(sock: socket.socket) -> None:
    """Refuse another user's process: whoever hands over a batch reads and writes the memory that it names."""
    _, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if uid != os.getuid():
        raise PermissionError(f"a process of user {uid} tried to connect; the engine serves user {os.getuid()} alone")
