"""The intake: whose batches are taken together, and what a front that leaves or is none costs the others."""

from __future__ import annotations

import gc
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from aikoryu.bus.columns import Field
from aikoryu.gpu.device import Device
from aikoryu.gpu.intake import Handed, Intake
from aikoryu.gpu.job import ControlSocket, Done, Hello, Job, Message, Part, Ready, Report
from aikoryu.gpu.slab import TIME, Slab

WAIT_S = 30.0
SLAB_BYTES = 4096


class Registering(Device):
    """Counts the slabs that it was told of."""

    def __init__(self) -> None:
        super().__init__("cpu", 1)
        self.slabs: list[Slab] = []
        self.refuses = False

    @property
    def registered(self) -> int:
        return len(self.slabs)

    def register(self, slab: Slab) -> None:
        if self.refuses:
            raise OSError("no room")
        self.slabs.append(slab)

    def unregister(self, slab: Slab) -> None:
        assert slab.fd >= 0, "it must still be there"
        self.slabs.remove(slab)


class Front:
    """A front that speaks by hand."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(address)
        self.control = ControlSocket(self.sock)
        self.heard: list[Message] = []

    def greet(self, slabs: int = 2, slab_bytes: int = SLAB_BYTES) -> None:
        made = [Slab.create(SLAB_BYTES) for _ in range(slabs)]
        self.control.greet(Hello(slab_bytes), [slab.fd for slab in made])
        for slab in made:
            slab.close()

    def hand_over(self, number: int, operation: str = "echo", rows: int = 3, p: bytes = b"", field: str = "f4") -> None:
        self.control.send(Job(number, 0, operation, rows, [Part("x", Field(field), 64, 4 * rows)], p, 0, 128))

    def hand_over_suspect(self, number: int) -> None:
        """A batch of the same lane that is to run alone."""
        self.control.send(Job(number, 0, "echo", 3, [Part("x", Field("f4"), 64, 12)], b"", 0, 128, alone=True))

    def hear(self, count: int) -> list[Message]:
        """The next messages."""
        while len(self.heard) < count:
            self.heard += self.control.receive()
        found, self.heard = self.heard[:count], self.heard[count:]
        return found


class Listener(socket.socket):
    """Closes at its end what it has accepted, as the end of an engine's process does."""

    def __init__(self) -> None:
        super().__init__(socket.AF_UNIX)
        self._accepted = ExitStack()

    def accept(self) -> tuple[socket.socket, Any]:
        sock, peer = super().accept()
        return self._accepted.enter_context(sock), peer

    def close(self) -> None:
        self._accepted.close()
        super().close()


class Rig:
    """An intake, and the fronts that the test connects to it."""

    def __init__(self, stack: ExitStack, max_rows: int) -> None:
        self.address = f"\0aikoryu-test-{secrets.token_hex(8)}"
        listener = stack.enter_context(Listener())
        listener.bind(self.address)
        listener.listen()
        self.host, theirs = socket.socketpair()
        stack.enter_context(self.host)
        stack.enter_context(theirs)
        self.device = Registering()
        self.pulse = Slab.create(TIME.size)
        stack.callback(self.pulse.close)
        self.intake = Intake(ControlSocket(theirs), listener, self.device, lambda job: max_rows, self.pulse)
        self._stack = stack

    def connect(self) -> Front:
        front = Front(self.address)
        self._stack.enter_context(front.sock)
        return front

    def front(self) -> Front:
        """A front that the engine knows: a first batch of it has run."""
        front = self.connect()
        front.greet()
        front.hand_over(0)
        (handed,) = self.take()
        handed.front.answer(Done(0, [], [], 0))
        assert [type(message) for message in front.hear(2)] == [Ready, Done]
        while self.intake._new:  # as an engine does that has nothing else to do
            if not self.intake._new[0].register_next():
                self.intake._new.popleft()
        return front

    def take(self) -> list[Handed]:
        return self.intake.take(wait=True)

    def numbers(self) -> list[int]:
        return [handed.job.id for handed in self.take()]


def open_descriptors() -> list[str]:
    """Those of this process that can still be looked at."""
    return [each for each in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{each}")]


StartRig = Callable[..., Rig]


@pytest.fixture
def start_rig() -> Iterator[StartRig]:
    with ExitStack() as stack:
        yield lambda max_rows=1000: Rig(stack, max_rows)


@pytest.fixture
def rig(start_rig: StartRig) -> Rig:
    return start_rig()


def answer(taken: list[Handed]) -> None:
    for handed in taken:
        handed.front.answer(Done(handed.job.id, [], [], 0))


def test_front_is_told_who_serves_it(rig: Rig) -> None:
    front = rig.connect()
    front.greet()
    front.hand_over(1)
    rig.take()
    ready, fds = front.control.receive_greeting(Ready)
    assert ready == Ready("cpu", os.getpid())
    pulse = Slab(fds[0], TIME.size)
    rig.pulse.stamp(0, 12.5)
    assert pulse.stamped(0) == 12.5
    pulse.close()


class TestTogether:
    def test_batches_of_one_lane_are_taken_together_whoever_handed_them_over(self, rig: Rig) -> None:
        first, second = rig.front(), rig.front()
        first.hand_over(1)
        second.hand_over(2)
        first.hand_over(3)
        taken = rig.take()
        assert sorted(handed.job.id for handed in taken) == [1, 2, 3]
        answer(taken)
        assert [done.id for done in first.hear(2) if isinstance(done, Done)] == [1, 3]
        assert [done.id for done in second.hear(1) if isinstance(done, Done)] == [2]

    @pytest.mark.parametrize("other", [{"operation": "other"}, {"p": b"\x81"}, {"field": "i4"}])
    def test_batches_of_another_lane_wait(self, rig: Rig, other: dict[str, str]) -> None:
        front = rig.front()
        front.hand_over(1)
        front.hand_over(2, **other)  # type: ignore[arg-type] # of several types
        front.hand_over(3)
        assert [rig.numbers(), rig.numbers()] == [[1, 3], [2]]

    def test_rows_that_run_together_are_bounded(self, start_rig: StartRig) -> None:
        rig = start_rig(max_rows=7)
        front = rig.front()
        for number, rows in enumerate([3, 3, 3, 1, 9], 1):
            front.hand_over(number, rows=rows)
        assert [rig.numbers(), rig.numbers(), rig.numbers()] == [[1, 2, 4], [3], [5]]

    def test_batch_that_is_to_run_alone_is_neither_joined_nor_joins(self, rig: Rig) -> None:
        first, second = rig.front(), rig.front()
        first.hand_over(1)
        first.hand_over_suspect(2)
        first.hand_over(3)
        first.hand_over_suspect(4)
        second.hand_over(5)
        assert sorted(rig.numbers()) == [1, 3, 5]
        assert [rig.numbers(), rig.numbers()] == [[2], [4]]

    def test_batch_that_is_to_run_alone_waits_until_nothing_runs_and_holds_up_what_came_after(self, rig: Rig) -> None:
        front = rig.front()
        front.hand_over_suspect(1)
        front.hand_over(2, operation="other")
        assert rig.intake.take(wait=False) == []
        assert [rig.numbers(), rig.numbers()] == [[1], [2]]

    def test_who_need_not_wait_is_told_of_nothing(self, rig: Rig) -> None:
        front = rig.front()
        assert rig.intake.take(wait=False) == []
        front.hand_over(1)
        assert [handed.job.id for handed in rig.intake.take(wait=False)] == [1]
        assert rig.intake.take(wait=False) == []


class TestEnd:
    def test_nothing_is_taken_when_the_host_has_gone(self, rig: Rig) -> None:
        front = rig.front()
        front.hand_over(1)
        assert not rig.intake.ended
        rig.host.close()
        assert rig.take() == []
        assert rig.intake.ended

    def test_front_that_leaves_withdraws_what_waits(self, rig: Rig) -> None:
        staying, leaving = rig.front(), rig.front()
        leaving.hand_over(1)
        leaving.hand_over(2, operation="other")
        assert rig.numbers() == [1]
        leaving.sock.close()
        staying.hand_over(3)
        assert rig.numbers() == [3]

    def test_slabs_of_a_front_that_leaves_are_let_go(self, rig: Rig) -> None:
        staying = rig.front()
        gc.collect()
        open_before = len(os.listdir("/proc/self/fd"))
        rig.front().sock.close()
        staying.hand_over(1)
        rig.take()
        gc.collect()
        assert rig.device.registered == 2, "those of the front that stays"
        assert len(os.listdir("/proc/self/fd")) == open_before

    def test_slabs_are_kept_while_a_batch_runs_over_them(self, rig: Rig) -> None:
        staying, leaving = rig.front(), rig.front()
        leaving.hand_over(1)
        leaving.hand_over(2, operation="other")
        running = [rig.take(), rig.take()]
        leaving.sock.close()
        staying.hand_over(3)
        assert rig.numbers() == [3]
        for (handed,) in running:
            assert handed.piece.slab.fd >= 0
            assert rig.device.registered == 4
            answer([handed])
        assert rig.device.registered == 2


class TestRegistering:
    """What a front's slabs cost is not paid by those whose batches wait."""

    def test_slab_is_known_to_the_device_when_a_batch_in_it_begins(self, rig: Rig) -> None:
        fronts = [rig.connect() for _ in range(3)]
        for number, front in enumerate(fronts):
            front.greet(slabs=10)
            front.hand_over(number, operation=f"test.{number}")
        for _ in fronts:
            (handed,) = rig.take()
            assert handed.piece.slab in rig.device.slabs
        assert rig.device.registered < 10, "of thirty"

    def test_others_are_when_nothing_waits(self, rig: Rig) -> None:
        front = rig.connect()
        front.greet(slabs=3)
        taking = threading.Thread(target=rig.take, daemon=True)
        taking.start()
        front.hear(1)
        deadline = time.monotonic() + 5.0
        while rig.device.registered < 3:
            assert time.monotonic() < deadline
        front.hand_over(1)
        taking.join(WAIT_S)
        assert rig.device.registered == 3

    def test_slab_that_cannot_be_page_locked_is_used_as_it_is(self, rig: Rig) -> None:
        front = rig.connect()
        rig.device.refuses = True
        front.greet()
        for number in (1, 2):
            front.hand_over(number)
            assert rig.numbers() == [number]
        front.sock.close()
        rig.front()
        assert rig.device.registered == 0


class TestStrangers:
    @pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", struct.pack("<I", 3) + b"\xc1\xc1\xc1"])
    def test_stranger_is_turned_away(self, rig: Rig, said: bytes) -> None:
        front, stranger = rig.front(), rig.connect()
        stranger.sock.sendall(said)
        stranger.sock.shutdown(socket.SHUT_WR)
        front.hand_over(1)
        assert rig.numbers() == [1]
        front.hand_over(2)
        assert rig.numbers() == [2]
        assert stranger.sock.recv(1) == b""

    def test_silent_connection_holds_nobody_up(self, rig: Rig) -> None:
        front, silent = rig.front(), rig.connect()
        for number in (1, 2):
            front.hand_over(number)
            assert rig.numbers() == [number]
        silent.greet()
        silent.hand_over(3)
        assert rig.numbers() == [3]

    def test_slab_larger_than_its_file_is_turned_away(self, rig: Rig) -> None:
        front, odd = rig.front(), rig.connect()
        odd.greet(slab_bytes=1 << 20)
        for number in (1, 2):
            front.hand_over(number)
            assert rig.numbers() == [number]
        with pytest.raises((EOFError, ConnectionError)):
            odd.hear(1)

    def test_batch_in_a_slab_that_is_none_ends_the_connection(self, rig: Rig) -> None:
        front, odd = rig.front(), rig.front()
        odd.control.send(Job(1, 99, "echo", 3, [], b"", 0, 128))
        rig.intake.take(wait=False)
        front.hand_over(2)
        assert rig.numbers() == [2]
        with pytest.raises((EOFError, ConnectionError)):
            odd.hear(1)

    def test_greeting_that_is_none_leaves_no_descriptor(self, rig: Rig) -> None:
        front, odd = rig.front(), rig.connect()
        fd = os.memfd_create("sent")
        inode = os.fstat(fd).st_ino
        socket.send_fds(odd.sock, [b"\5\0\0\0garba"], [fd])
        os.close(fd)
        front.hand_over(1)
        assert rig.numbers() == [1]
        front.hand_over(2)
        assert rig.numbers() == [2]
        assert inode not in {os.stat(f"/proc/self/fd/{each}").st_ino for each in open_descriptors()}

    def test_process_of_another_user_is_turned_away(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        front = rig.front()
        monkeypatch.setattr(os, "getuid", lambda: -1)
        other = rig.connect()
        other.greet()
        front.hand_over(1)
        assert rig.numbers() == [1]
        front.hand_over(2)
        assert rig.numbers() == [2]
        with pytest.raises((EOFError, ConnectionError)):
            other.hear(1)

    @pytest.mark.parametrize("said", [struct.pack("<I", 1) + b"\xc1", struct.pack("<I", 6) + b"\x91\xa4what"])
    def test_garbage_ends_the_connection_of_who_said_it(self, rig: Rig, said: bytes) -> None:
        front, broken = rig.front(), rig.front()
        broken.sock.sendall(said)
        front.hand_over(1)
        assert rig.numbers() == [1]
        front.hand_over(2)
        assert rig.numbers() == [2]
        with pytest.raises((EOFError, ConnectionError)):
            broken.hear(1)
        assert rig.device.registered == 2

    def test_messages_that_are_no_batch_are_passed_over(self, rig: Rig) -> None:
        front = rig.front()
        front.control.send(Report({}))
        front.hand_over(1)
        assert rig.numbers() == [1]


def test_every_front_hears_the_figures(rig: Rig) -> None:
    fronts = [rig.front(), rig.front()]
    rig.intake.report({"device_allocated_bytes": 1.0})
    assert [front.hear(1) for front in fronts] == [[Report({"device_allocated_bytes": 1.0})]] * 2


def test_answer_larger_than_the_sockets_buffer_arrives_when_it_is_read(rig: Rig) -> None:
    """A batch whose rows are all refused says so of each."""
    front, other = rig.front(), rig.front()
    front.hand_over(1)
    (handed,) = rig.take()
    errors = [(row, "no_tensor", "x" * 500) for row in range(4000)]
    handed.front.answer(Done(1, [], errors, 0))
    heard: list[Message] = []
    reader = threading.Thread(target=lambda: heard.extend(front.hear(1)))
    reader.start()
    while reader.is_alive():
        rig.intake.take(wait=False)
    assert [len(message.errors) for message in heard if isinstance(message, Done)] == [4000]
    other.hand_over(2)
    assert rig.numbers() == [2]
