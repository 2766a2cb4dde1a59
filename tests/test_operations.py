"""The operator's page and the files to deploy with, held against the code that they speak of."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import shlex
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest

import aikoryu.bus
from aikoryu.bus.errors import BusError
from aikoryu.bus.server import find_server
from aikoryu.cli import INTERRUPTED, main, worker
from aikoryu.cli.arguments import settings_of
from aikoryu.cli.serving import UNANSWERED
from aikoryu.config import Settings, describe, load
from aikoryu.gpu.fleet import STOP_SLACK_S

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "examples" / "deploy"
PAGE = (ROOT / "docs" / "operations.md").read_text()
SLACK_S = 2 * STOP_SLACK_S  # what is left after `worker.drain_s`: fronts that are killed, engines


def section(title: str) -> str:
    """A section of the page."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(title: str) -> set[str]:
    """What the first column of a section's table names."""
    cells = re.findall(r"^\| ([^|]*`[^|]*) \|", section(title), re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def codes(error: type[BusError]) -> set[str]:
    """The codes of a family of errors."""
    return {error.code, *(code for each in error.__subclasses__() for code in codes(each))}


def settings_for(arguments: list[str]) -> Settings:
    """The settings that a worker with these arguments has; it accepts them."""
    parser = argparse.ArgumentParser()
    worker.add(parser.add_subparsers())
    return settings_of(parser.parse_args(arguments))


# --- the page --------------------------------------------------------------------------------------------------------


def test_every_exit_status_is_told() -> None:
    found = re.findall(r"^\| (\d+) \|", section("Exit statuses"), re.M)
    assert [int(status) for status in found] == [0, 1, 2, UNANSWERED, INTERRUPTED]


def test_every_error_code_is_told_and_no_other() -> None:
    for module in pkgutil.iter_modules(aikoryu.bus.__path__):
        importlib.import_module(f"aikoryu.bus.{module.name}")
    assert first_cells("Error codes") == codes(BusError) - {BusError.code}


def test_metrics_to_watch_are_there() -> None:
    known = set(re.findall(r"`(aikoryu_\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    told = set(re.findall(r"`(aikoryu_\w+)`", PAGE))
    assert told <= known
    assert len(told) > 10


def test_settings_that_it_names_are_there() -> None:
    groups = {key.partition(".")[0] for key, *_ in describe()}
    named = {name for name in re.findall(r"`(\w+\.\w+)[`=]", PAGE) if name.partition(".")[0] in groups} - {
        "worker.toml",
        "faults.md",
    }
    assert named <= {key for key, *_ in describe()}
    assert len(named) > 15


def test_lines_of_the_log_that_it_names_are_written() -> None:
    sources = "".join(path.read_text() for folder in ("agents", "bus", "gpu") for path in (ROOT / folder).rglob("*.py"))
    named = first_cells("Lines of the log") - {"event"}
    assert {line for line in named if f'"{line}"' not in sources} == set()
    assert len(named) > 20


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / link).exists(), link


# --- systemd ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unit() -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "aikoryu-worker.service")
    return parser


def test_unit_waits_longer_than_the_worker_drains(unit: RawConfigParser) -> None:
    settings = load(DEPLOY / "worker.toml", {})
    assert float(unit["Service"]["TimeoutStopSec"]) >= settings.worker.drain_s + SLACK_S
    assert (unit["Service"]["Type"], unit["Service"]["KillMode"]) == ("notify", "mixed")
    assert unit["Service"]["RestartPreventExitStatus"] == "2"


def test_unit_starts_what_there_is(unit: RawConfigParser) -> None:
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/aikoryu")
    own = str(DEPLOY / "worker.toml")
    settings = settings_for([argument.replace("/etc/aikoryu/worker.toml", own) for argument in arguments])
    assert settings.worker.metrics_port


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "aikoryu-worker.service").read_text()
    mine = re.sub("^ExecStart=[^ ]+", "ExecStart=/bin/true", text, flags=re.M).replace("User=aikoryu", "User=root")
    (tmp_path / "aikoryu-worker.service").write_text(mine)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "aikoryu-worker.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line for line in verified.stderr.splitlines() if "aikoryu" in line]
    assert (verified.returncode, told) == (0, [])


# --- Kubernetes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pod() -> Any:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    deployment, budget = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    return deployment["spec"]["template"]


def test_pod_runs_what_there_is(pod: Any) -> None:
    (container,) = pod["spec"]["containers"]
    settings = settings_for(container["args"])
    assert settings.worker.metrics_host == "0.0.0.0"
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(settings.worker.metrics_port)
    assert pod["spec"]["terminationGracePeriodSeconds"] >= settings.worker.drain_s + SLACK_S


def test_probes_ask_where_the_worker_answers(pod: Any) -> None:
    (container,) = pod["spec"]["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == settings_for(container["args"]).worker.metrics_port
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: get["path"] for kind, get in asked.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert {get["port"] for get in asked.values()} == {port["name"]}


def test_pod_is_spared_variables_that_look_like_settings(
    pod: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pod["spec"]["enableServiceLinks"] is False
    monkeypatch.setenv("AIKORYU_WORKER_PORT", "tcp://10.0.0.1:9100")  # as of a Service `aikoryu-worker`
    assert main(["worker"]) == 2
    assert "AIKORYU_WORKER_PORT" in capsys.readouterr().err


# --- NATS ------------------------------------------------------------------------------------------------------------


def test_server_takes_the_cluster_around_our_users(tmp_path: Path) -> None:
    assert main(["auth", "init", str(tmp_path / "auth")]) == 0
    shutil.copy(DEPLOY / "nats-cluster.conf", tmp_path)
    tried = subprocess.run(
        [find_server(), "-t", "-c", str(tmp_path / "nats-cluster.conf")], capture_output=True, text=True, check=False
    )
    assert tried.returncode == 0, tried.stderr
