"""Which streams are open, and that whoever serves them hears of their end, once."""

from __future__ import annotations

import pytest

from aikoryu.bus import open_streams
from aikoryu.bus.open_streams import OpenStreams
from aikoryu.bus.service import Endpoint


def opened(streams: OpenStreams, ended: list[tuple[int, int]], *keys: tuple[int, int]) -> None:
    for client, number in keys:
        streams.open(client, number, Endpoint("echo", "echo", lambda held: None))
        stream = streams.find(client, number)
        assert stream is not None
        stream.on_close = lambda key=(client, number): ended.append(key)  # type: ignore[misc]


def test_closed_stream_tells_once() -> None:
    streams, ended = OpenStreams(), list[tuple[int, int]]()
    opened(streams, ended, (1, 1), (1, 2), (2, 1))
    streams.close(1, 2)
    streams.close(1, 2)
    streams.close(9, 9)
    assert ended == [(1, 2)]
    assert len(streams) == 2


def test_client_that_is_gone_closes_all_of_its_own() -> None:
    streams, ended = OpenStreams(), list[tuple[int, int]]()
    opened(streams, ended, (1, 1), (2, 1), (1, 2))
    streams.close_of(1)
    assert ended == [(1, 1), (1, 2)]
    assert streams.find(2, 1) is not None


def test_stream_opened_anew_ends_the_one_before() -> None:
    streams, ended = OpenStreams(), list[tuple[int, int]]()
    opened(streams, ended, (1, 1))
    first = streams.find(1, 1)
    opened(streams, ended, (1, 1))
    assert ended == [(1, 1)]
    assert streams.find(1, 1) is not first


def test_stream_idle_longest_ends_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_streams, "MAX_STREAMS", 2)
    streams, ended = OpenStreams(), list[tuple[int, int]]()
    opened(streams, ended, (1, 1), (1, 2))
    streams.find(1, 1)
    opened(streams, ended, (1, 3))
    assert ended == [(1, 2)]
    assert streams.forgotten == 1
    assert len(streams) == 2


def test_client_that_opens_too_many_closes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_streams, "MAX_STREAMS", 4)
    streams, ended = OpenStreams(), list[tuple[int, int]]()
    opened(streams, ended, (1, 1), (2, 1), *((9, number) for number in range(100)))
    assert ended == [(9, number) for number in range(98)]
    opened(streams, ended, (3, 1))  # who comes later, too, finds room where one has the most
    assert ended[98:] == [(9, 98)]
    assert all(streams.find(*key) for key in ((1, 1), (2, 1), (3, 1), (9, 99)))


def test_of_clients_with_as_many_the_one_idle_longest_loses_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_streams, "MAX_STREAMS", 3)
    streams, ended = OpenStreams(), list[tuple[int, int]]()
    opened(streams, ended, (1, 1), (2, 1), (3, 1))
    streams.find(1, 1)
    opened(streams, ended, (4, 1), (5, 1))
    assert ended == [(2, 1), (3, 1)]
