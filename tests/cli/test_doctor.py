"""`aikoryu doctor`, with what is missing faked."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from importlib.metadata import version
from types import SimpleNamespace

import pytest

from aikoryu.bus.errors import ServerFailed
from aikoryu.cli import doctor, main


class Driver(SimpleNamespace):
    """Looks like pynvml on a machine with these devices."""

    NVMLError = RuntimeError

    def __init__(self, *devices: str) -> None:
        super().__init__(
            nvmlInit=lambda: None,
            nvmlShutdown=lambda: None,
            nvmlSystemGetDriverVersion=lambda: "580.1",
            nvmlSystemGetCudaDriverVersion=lambda: 13000,
            nvmlDeviceGetCount=lambda: len(devices),
            nvmlDeviceGetHandleByIndex=lambda index: index,
            nvmlDeviceGetName=lambda index: devices[index],
            nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(total=80 * 2**30),
        )


@pytest.fixture
def findings(capsys: pytest.CaptureFixture[str]) -> Iterator[object]:
    """Run the doctor: its exit status, and (state, detail) by what it looked for."""

    def look(*arguments: str) -> tuple[int, dict[str, tuple[str, str]]]:
        # Port 0: what else runs on this machine is no matter here.
        status = main(["doctor", "--set", "server.port=0", *arguments])
        found = {}
        for line in capsys.readouterr().out.splitlines():
            if line.startswith(("ok", "missing", "absent")):
                state, rest = line.split(None, 1)
                what, _, detail = rest.partition("  ")
                found[what] = (state, detail.strip())
        return status, found

    return look  # type: ignore[return-value]
