"""`aikoryu packets` on an interface: in a process of its own, because it takes the signals over."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("needs Linux", allow_module_level=True)

from aikoryu.cli import main
from aikoryu.netio.capture import open_capture

from ..netio.namespace import FAR, NEAR, network, sender

HTTP = (
    b"\xff" * 6 + b"\2" * 6 + b"\x81\0\0\5\x08\0"
    b"\x45\0\0\x38\0\0\0\0\x40\6\0\0\x0a\0\0\1\x0a\0\0\2"
    b"\xc0\0\0\x50\0\0\0\7\0\0\0\0\x50\x18\x01\0\0\0\0\0GET / HTTP/1.1\r\n"
)
SENT_EVERY_S = 0.01


@pytest.fixture(scope="module")
def thread() -> Iterator[ThreadPoolExecutor]:
    with network() as made:
        yield made


Said = tuple[int, str, str]


@pytest.fixture
def run(thread: ThreadPoolExecutor) -> Callable[..., Said]:
    """Run a command while packets come; its status, and what it said."""

    def inside(arguments: list[str], stop_when: Callable[[], bool] | None) -> Said:
        command = [sys.executable, "-m", "aikoryu.cli", "packets", *arguments]
        with (
            sender(NEAR) as out,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        ):
            while process.poll() is None:
                out.send(HTTP)
                if stop_when is not None and stop_when():
                    process.send_signal(signal.SIGINT)
                    stop_when = None
                try:
                    process.wait(SENT_EVERY_S)
                except subprocess.TimeoutExpired:
                    continue
            said, told = process.communicate()
            return process.returncode, said, told

    def run(*arguments: str, stop_when: Callable[[], bool] | None = None) -> Said:
        return thread.submit(inside, list(arguments), stop_when).result(timeout=60)

    return run


def test_inspect_prints_what_comes(run: Callable[..., Said]) -> None:
    pytest.importorskip("cypcap", reason="needs the extra `live`")
    status, out, err = run("inspect", "--live", FAR, "--filter", "vlan 5 and tcp port 80", "--count", "2")
    assert status == 0, err
    heading, first, second = out.splitlines()
    assert heading.split()[:2] == ["No.", "Time"]
    assert first.split()[:7] == ["1", "0.000000", "10.0.0.1", "10.0.0.2", "HTTP", "74", "VLAN"]
    assert second.split()[0] == "2"
    assert "0 of them were dropped" in err


def test_record_writes_until_it_is_interrupted(run: Callable[..., Said], tmp_path: Path) -> None:
    path = tmp_path / "trace.pcapng"
    status, out, _ = run("record", FAR, str(path), stop_when=lambda: path.exists() and path.stat().st_size > 0)
    assert (status, out.startswith(f"{path}: ")) == (0, True)
    with open_capture(path) as capture:
        assert {capture.packet(row) for row in range(len(capture.index))} == {HTTP}
        assert f"{len(capture.index)} packets" in out
        assert not capture.truncated
    status, _, err = run("record", FAR, str(path))
    assert (status, "is there already" in err) == (1, True)


def test_record_of_nothing_is_a_capture(run: Callable[..., Said], tmp_path: Path) -> None:
    pytest.importorskip("cypcap", reason="needs the extra `live`")
    path = tmp_path / "trace.pcapng"
    assert run("record", FAR, str(path), "--filter", "udp", "--seconds", "0.1")[0] == 0
    with open_capture(path) as capture:
        assert len(capture.index) == 0


def test_interface_that_is_not_there_is_refused(run: Callable[..., Said], tmp_path: Path) -> None:
    status, _, err = run("record", "nowhere", str(tmp_path / "x"))
    assert (status, err) == (1, "aikoryu: nowhere: No such device\n")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("arguments", [[], ["x.pcap", "--live", "lo"], ["x.pcap", "--json", "--arrow", "x.parquet"]])
def test_one_source_and_one_form(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["packets", "inspect", *arguments])
    assert "usage:" in capsys.readouterr().err


def test_filters_are_for_interfaces(tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    assert main(["packets", "inspect", str(tmp_path / "x.pcap"), "--filter", "tcp"]) == 1
    assert "--filter goes with --live" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "nan", "inf", "soon"])
def test_recording_takes_some_time(seconds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["packets", "record", "lo", str(tmp_path / "x.pcapng"), "--seconds", seconds])
    assert f"'{seconds}' is no number of seconds above 0" in capsys.readouterr().err
