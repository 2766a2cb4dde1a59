"""A process that serves and the process that started it: what they say to each other meanwhile."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aikoryu.gpu.child_process import ChildProcess

WAIT_S = 30.0
# It tells, every millisecond, what it has heard last; while `deaf` is there its loop hangs.
CHILD = """
import asyncio, pathlib, time
import msgspec, {uvloop}
from aikoryu.gpu.child_process import Parent

HERE = pathlib.Path(__file__).parent

class Spec(msgspec.Struct):
    length: int

async def serve():
    parent = Parent(Spec)
    parent.ready()

    def line():
        while (HERE / "deaf").exists():
            (HERE / "hangs").touch()
            time.sleep(0.005)
        with open(HERE / "told", "ab") as told:
            told.write(b".")
        return f"{{parent.told.decode().strip() or '-'}} {{'x' * parent.spec.length}}".encode() + b"\\n"

    telling = asyncio.create_task(parent.keep_telling(line, 0.001))
    await parent.wants_end()
    telling.cancel()

{uvloop}.run(serve())
"""


class Spec(msgspec.Struct):
    """What the child is told to be: one that says lines of a length."""

    length: int


@pytest.fixture(params=["asyncio", "uvloop"])
def module(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "test_talker.py").write_text(CHILD.format(uvloop=request.param))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return "test_talker"


@pytest.fixture
async def child(module: str) -> AsyncIterator[ChildProcess]:
    process = await ChildProcess.start(module, Spec(300_000), "it", start_within_s=WAIT_S, end_within_s=WAIT_S)
    try:
        yield process
    finally:
        await process.kill()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - it is another process that changes it
            await asyncio.sleep(0.002)


def words(child: ChildProcess) -> list[bytes]:
    return child.told.split() or [b""]


async def test_each_hears_what_the_other_said_last(child: ChildProcess) -> None:
    await until(lambda: words(child)[0] == b"-")
    assert len(words(child)[1]) == 300_000, "more than a pipe holds"
    for said in (b"one", b"two"):
        child.tell(said + b"\n")
        await until(lambda said=said: words(child)[0] == said)  # type: ignore[misc]
    assert await child.end() == 0
    child.tell(b"three\n")  # to nobody


async def test_a_child_that_does_not_read_is_told_no_more(child: ChildProcess, tmp_path: Path) -> None:
    (tmp_path / "deaf").touch()
    await until((tmp_path / "hangs").exists)
    stdin = child._process.stdin
    assert stdin is not None
    for _ in range(20):
        child.tell(b"y" * 99_999 + b"\n")
    assert 0 < stdin.transport.get_write_buffer_size() < 200_000
    (tmp_path / "deaf").unlink()
    await until(lambda: words(child)[0] == b"y" * 99_999)
    child.tell(b"again\n")
    await until(lambda: words(child)[0] == b"again")


async def test_a_parent_that_does_not_read_is_told_no_more(child: ChildProcess, tmp_path: Path) -> None:
    pipe: Any = child._process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
    pipe.pause_reading()
    told, before = tmp_path / "told", 0
    await until(told.exists)
    try:
        while before != (before := told.stat().st_size):
            assert before < 30
            await asyncio.sleep(0.1)
    finally:
        pipe.resume_reading()
    child.tell(b"heard\n")
    await until(lambda: words(child)[0] == b"heard")


async def test_half_a_line_of_a_child_that_died_is_not_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_talker.py").write_text("print('ready\\nwhole\\nhal', end='', flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    process = await ChildProcess.start("test_talker", Spec(0), "it", start_within_s=WAIT_S, end_within_s=WAIT_S)
    assert await process.ended() == 0
    await until(lambda: process._hearing is not None and process._hearing.done())
    assert process.told == b"whole"
