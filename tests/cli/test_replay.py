"""`aikoryu record` and `aikoryu replay` against a server, and workers that answer right and wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

import aikoryu
from aikoryu.agents import open_transport
from aikoryu.bus.frames import Request, encode
from aikoryu.bus.recording import Recording, RecordingWriter
from aikoryu.bus.server import EmbeddedServer
from aikoryu.cli import main
from aikoryu.config import ModelSettings, NatsSettings, ServerSettings, Settings, WorkerSettings
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker
from aikoryu.netio.packet_index import PacketIndex
from aikoryu.netio.writer import write_pcap

from .conftest import Command, Start

OPERATION = '''
import aikoryu

@aikoryu.operation("demo.third", inputs={"x": "i8"}, outputs={"y": "i8"})
def third(x):
    """Three times x."""
    y = x * 3
    %s
    return {"y": y}
'''


@asynccontextmanager
async def serving(url: str, path: Path, fault: str = "") -> AsyncIterator[Settings]:
    """A worker of this process with an operation, which may do something wrong."""
    path.write_text(OPERATION % fault)
    settings = Settings(
        nats=NatsSettings(url=url),
        models=ModelSettings(embed=()),
        worker=WorkerSettings(name="w1", operations=(str(path),)),
    )
    async with AsyncExitStack() as stack:
        transport = await open_transport(settings)
        stack.push_async_callback(transport.close)
        worker = Worker(transport, settings, [InlineEngine(load(catalogue_of(settings)))])
        await worker.start()
        stack.push_async_callback(worker.stop)
        yield settings


async def ended(command: Command, status: int) -> str:
    """What a command said that ended with this status."""
    assert await asyncio.to_thread(command.end) == status, command.words
    assert "Traceback" not in command.words
    return command.words


async def test_what_was_recorded_is_verified(start: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "bus.rec")
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        recording = start("record", path, "--subjects", "demo.>", "echo", "--nats", server.url)
        async with serving(server.url, tmp_path / "right.py") as settings:
            await asyncio.to_thread(recording.hear, "Recording demo.> echo of nats://")
            async with aikoryu.connect(settings=settings) as bus:
                await bus.call_many("demo.third", {"x": np.arange(5)})
                await bus.call("echo", {"x": 0.5})
                await bus.matrix.matmul(np.eye(2), np.eye(2))
            recording.interrupt()
            assert f"{path}: 2 requests and 2 answers" in await ended(recording, 0)
            arguments = ("replay", path, "--speed", "max", "--verify", "--nats", server.url)
            told = await ended(start(*arguments, "--json"), 0)
            report = json.loads(next(line for line in told.splitlines() if line.startswith("{")))
            assert (report["compared"], report["differing"], sorted(report["operations"])) == (
                6,
                0,
                ["demo.third", "echo"],
            )
            told = await ended(start(*arguments), 0)
            assert "verified: 6 rows compared, 0 differ" in told
        async with serving(server.url, tmp_path / "wrong.py", "y[2] += 1"):
            told = await ended(start(*arguments), 1)
            assert "verified: 6 rows compared, 1 differ\n" in told
            assert "  request 0 demo.third, row 2 y: recorded 6, now 7\n" in told
        told = await ended(start(*arguments), 1)
        assert "error no_worker: 6 rows" in told


async def test_a_recorder_that_is_killed_leaves_what_it_heard(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "bus.rec"
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        recording = start("record", str(path), "--subjects", ">", "--nats", server.url)
        async with serving(server.url, tmp_path / "right.py") as settings:
            await asyncio.to_thread(recording.hear, "Recording > of ")
            async with aikoryu.connect(settings=settings) as bus:
                for number in range(50):
                    await bus.call("demo.third", {"x": number})
                    if number == 39:
                        while not path.exists() or len(Recording(path)) < 40:  # noqa: ASYNC110 - of another process
                            await asyncio.sleep(0.005)
                        recording.process.kill()
    await asyncio.to_thread(recording.end)
    read = Recording(path)
    assert (read.ended, read.truncated) == (None, False)
    answers = [read.exchange(number).answer.columns["y"] for number in range(39)]
    assert [int(answer[0]) for answer in answers] == [3 * number for number in range(39)]


async def test_a_full_file_ends_the_recording(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "bus.rec"
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        recording = start("record", str(path), "--subjects", ">", "--max-mib", "0.002", "--nats", server.url)
        async with serving(server.url, tmp_path / "right.py") as settings:
            await asyncio.to_thread(recording.hear, "Recording > of ")
            async with aikoryu.connect(settings=settings) as bus:
                await bus.call_many("demo.third", {"x": np.arange(1000)})
            told = await ended(recording, 0)
    assert "0 requests and 0 answers" in told
    assert "the file is full: --max-mib lets it grow" in told


async def test_packets_of_a_capture_are_dissected(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "trace.pcap"
    frame = bytes.fromhex("0200000000010200000000020800") + bytes.fromhex(
        "4500001c000100004011f96f0a0000090a0000020005000600080000"
    )
    index = PacketIndex(
        offset=np.zeros(300, np.uint64),
        captured=np.full(300, len(frame), np.uint32),
        wire=np.full(300, len(frame), np.uint32),
        time_ns=np.arange(300) * 100_000,
        timed=np.ones(300, bool),
        link=np.ones(300, np.uint16),
        interface=np.zeros(300, np.uint32),
    )
    with path.open("wb") as file:
        write_pcap(file, np.frombuffer(frame, np.uint8), index)
    async with EmbeddedServer(ServerSettings(port=0)) as server, serving(server.url, tmp_path / "right.py"):
        arguments = ["replay", str(path), "--operation", "packets.dissect", "-p", 'columns=["outer.dport"]']
        arguments += ["--loop", "2", "--unique-addresses", "--nats", server.url]
        for speed in ("1x", "max"):
            told = await ended(start(*arguments, "--speed", speed), 0)
            assert "600 packets, 600 rows in " in told


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A recording of one request."""
    path = tmp_path / "bus.rec"
    with RecordingWriter(path, "aikoryu.v1.default", ("echo",), 0, 1 << 20) as writer:
        writer.asked(0, "echo", encode(Request(v=1, n=1, id=1)))
    return path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--operation", "packets.dissect"], "is a recording: --operation"),
        (["--rtol", "1"], "give it too"),
    ],
)
def test_what_makes_no_sense_of_a_recording_is_refused(
    recorded: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(recorded), *arguments]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "say what takes it: --operation packets.dissect"),
        (["--operation", "topic.x"], "a system cannot be called"),
        (["--operation", "echo"], "name another"),
        (["--operation", "packets.flows"], "takes chunks, not packets: aikoryu packets flows"),
        (["--operation", "packets.flows.3"], "takes chunks, not packets: aikoryu packets flows"),
        (["--verify"], "is no recording: --verify"),
    ],
)
def test_what_makes_no_sense_of_a_capture_is_refused(
    tmp_path: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.pcap"
    path.write_bytes(b"no capture, surely no capture at all")
    assert main(["replay", str(path), *arguments]) == 1
    assert told in capsys.readouterr().err


def test_files_that_are_there_or_are_not(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "none")]) == 1
    assert "none cannot be read: No such file" in capsys.readouterr().err
    assert main(["record", str(tmp_path / "new"), "--subjects", "topic.>"]) == 1
    assert "'topic.>': operation 'topic'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["replay", str(recorded), "--speed", "fast"])
    assert "write 1x, 10x" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["replay", str(recorded), "--loop", "-1"])
    with pytest.raises(SystemExit):
        main(["replay", str(recorded), "--rtol", "nan"])
    with pytest.raises(SystemExit):
        main(["record", str(recorded), "--subjects", "echo", "--seconds", "0"])


async def test_a_file_is_not_written_over(recorded: Path, start: Start) -> None:
    before = recorded.read_bytes()
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        told = await ended(start("record", str(recorded), "--subjects", "echo", "--nats", server.url), 1)
        assert "bus.rec is there already" in told
    assert recorded.read_bytes() == before


@pytest.mark.parametrize("command", ["record", "replay"])
def test_help_fits_a_terminal(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
