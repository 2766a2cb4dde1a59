"""The messages between front and engine, over a real pair of sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from aikoryu.bus.columns import Field
from aikoryu.gpu.job import ControlSocket, Done, Job, Message, Part, Ready

JOB = Job(1, 0, "echo", 3, [Part("x", Field("f4", (2, 3)), 64, 72)], b"\x80", 0, 136)
DONE = Done(1, [Part("t", Field("utf8"), 128, 9, 64)], [(2, "bad_value", "no")], 17)
READY = Ready("cpu", 4711)


@pytest.fixture
def sockets() -> Iterator[tuple[ControlSocket, ControlSocket]]:
    ours, theirs = socket.socketpair()
    yield ControlSocket(ours), ControlSocket(theirs)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("message", [JOB, DONE, READY], ids=lambda message: type(message).__name__)
def test_message_arrives_as_it_was_sent(sockets: tuple[ControlSocket, ControlSocket], message: Message) -> None:
    sockets[0].send(message)
    assert list(sockets[1].receive()) == [message]


def test_messages_sent_together_arrive_apart(sockets: tuple[ControlSocket, ControlSocket]) -> None:
    for message in (JOB, DONE, READY):
        sockets[0].send(message)
    assert list(sockets[1].receive()) == [JOB, DONE, READY]


def test_message_that_arrives_in_pieces_is_put_together(sockets: tuple[ControlSocket, ControlSocket]) -> None:
    sender, receiver = sockets
    sender.send(DONE)
    whole = receiver.sock.recv(4096)
    for byte in whole[:-1]:
        sender.sock.sendall(bytes([byte]))
        assert list(receiver.receive()) == []
    sender.sock.sendall(whole[-1:])
    assert list(receiver.receive()) == [DONE]


def test_closed_end_is_an_end_of_file(sockets: tuple[ControlSocket, ControlSocket]) -> None:
    sockets[0].sock.close()
    with pytest.raises(EOFError):
        list(sockets[1].receive())


def test_nothing_to_read_does_not_block(sockets: tuple[ControlSocket, ControlSocket]) -> None:
    sockets[1].sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        list(sockets[1].receive())
