"""Signals, and what they say, also to nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from aikoryu.cli.progress import Progress, say
from aikoryu.cli.stopping import stopping


@pytest.fixture(params=["gone", "closed"])
def _unread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stderr whose reader has gone, or that is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        if request.param == "closed":
            stream.close()
        yield
        with pytest.raises((BrokenPipeError, ValueError)):
            print("a word", file=stream, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # what is left in the stream goes there


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_first_signal_asks_and_second_cancels(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    with stopping() as stop:
        stop.drains = True
        os.kill(os.getpid(), number)
        await stop.asked.wait()
        assert "Stopping when" in capsys.readouterr().err
        os.kill(os.getpid(), number)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()


async def test_first_signal_cancels_while_there_is_nothing_to_drain(capsys: pytest.CaptureFixture[str]) -> None:
    with stopping() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
    assert stop.asked.is_set()
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("_unread")
async def test_signal_asks_also_if_nobody_reads_what_it_says() -> None:
    with stopping() as stop:
        stop.drains = True
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(5):
            await stop.asked.wait()


@pytest.mark.usefixtures("_unread")
def test_progress_needs_no_reader() -> None:
    say("a word")
    Progress().show("a state")
