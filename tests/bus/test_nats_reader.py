"""The reader: bytes of any cut become the same messages, and what is not ours is left whole and in order."""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats import errors

from aikoryu.bus.nats_reader import AT_ONCE, LONGEST_LINE, Reader, headers_of
from aikoryu.bus.transport import Message

TEXT = (
    b"PING\r\n"
    b"MSG a.b 1 5\r\nhello\r\n"
    b"MSG a.b 1 reply.to 0\r\n\r\n"
    b"HMSG a.c 1 reply.to 23 25\r\nNATS/1.0\r\nName: x y\r\n\r\nhi"
    b"\r\n"
    b"MSG other 9 9\r\nMSG a 1 2\r\n"
    b"HMSG a.d 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
    b"-ERR 'Slow Consumer'\r\n"
    b"MSG a.e 1 3\r\n\r\nx\r\n"
)


def read(chunks: list[bytes]) -> tuple[list[Message], list[bytes | Exception], list[Exception]]:
    """Messages, what was left to nats-py, and errors."""
    messages: list[Message] = []
    failures: list[Exception] = []
    reader = Reader({1: messages.append}, failures.append)
    for chunk in chunks:
        reader.data_received(chunk)
    rest = [reader.rest.get_nowait() for _ in range(reader.rest.qsize())]
    return messages, rest, failures


@given(st.lists(st.integers(0, len(TEXT)), max_size=40))
def test_any_cut_gives_the_same_messages(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(TEXT)]
    messages, rest, failures = read([TEXT[a:b] for a, b in itertools.pairwise(edges) if a < b])
    assert [(m.subject, m.reply, m.data, m.headers) for m in messages] == [
        ("a.b", "", b"hello", None),
        ("a.b", "reply.to", b"", None),
        ("a.c", "reply.to", b"hi", {"Name": "x y"}),
        ("a.d", "", b"", {"Status": "503"}),
        ("a.e", "", b"\r\nx", None),
    ]
    assert rest == [b"PING\r\n", b"MSG other 9 9\r\nMSG a 1 2\r\n", b"-ERR 'Slow Consumer'\r\n"]
    assert failures == []


async def test_others_run_before_a_flood_of_messages_is_read_on() -> None:
    read: list[int] = []
    flood = AT_ONCE * b"MSG a 1 0\r\n\r\n"
    ours, theirs = socket.socketpair()
    stream, writer = await asyncio.open_connection(sock=ours)
    messages: list[Message] = []
    reader = Reader({1: messages.append}, lambda error: None)
    reader.take_over(stream, writer)
    transport: Any = writer.transport
    transport.pause_reading = lambda: read.append(len(messages))
    theirs.sendall(flood)
    while len(messages) < AT_ONCE:  # noqa: ASYNC110 - it comes over a socket
        await asyncio.sleep(0)
    assert read == [AT_ONCE]
    theirs.sendall(flood)
    while len(messages) < 2 * AT_ONCE:  # noqa: ASYNC110 - it comes over a socket
        await asyncio.sleep(0)
    assert read == [AT_ONCE, 2 * AT_ONCE]
    theirs.close()
    writer.close()
    await asyncio.wait({asyncio.ensure_future(writer.wait_closed())})


def test_a_line_without_end_is_a_protocol_error() -> None:
    _, rest, _ = read([b"X" * (LONGEST_LINE + 1)])
    assert len(rest) == 1
    assert isinstance(rest[0], errors.ProtocolError)


def test_a_subject_that_is_not_utf8_is_reported_and_the_next_message_read() -> None:
    messages, _, failures = read([b"MSG \xff\xfe 1 1\r\nx\r\nMSG ok 1 1\r\ny\r\n"])
    assert [message.subject for message in messages] == ["ok"]
    assert len(failures) == 1


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        (b"NATS/1.0\r\n\r\n", {}),
        (b"NATS/1.0 404 No Messages\r\n\r\n", {"Status": "404", "Description": "No Messages"}),
        (b"NATS/1.0\r\nA:1\r\nB:  two \r\n\r\n", {"A": "1", "B": "two"}),
        (b"NATS/1.0 \xff\xff\r\n\r\n", {}),
        (b"NATS/1.0\r\n\xff: \xff\r\nnocolon\r\n\r\n", {"\ufffd": "\ufffd"}),
    ],
)
def test_headers(block: bytes, headers: dict[str, str]) -> None:
    assert headers_of(block) == headers
