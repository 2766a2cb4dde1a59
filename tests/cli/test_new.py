"""The folder that `aikoryu new` makes: its test passes, and its agent runs."""

from __future__ import annotations

import ast
import asyncio
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from aikoryu.bus.server import EmbeddedServer
from aikoryu.cli import main
from aikoryu.config import ServerSettings


@pytest.fixture
def project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "projects" / "my-agent"
    assert main(["new", str(folder)]) == 0
    assert "my_agent.py" in capsys.readouterr().out
    return folder


def test_its_test_passes_without_a_server(project: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:asyncio", "-p", "no:cacheprovider"]
    env = {**os.environ, "AIKORYU_NATS_URL": "nats://127.0.0.1:1"}
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


async def test_its_agent_runs_and_answers_as_its_readme_says(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split("#")[0].split() for line in (project / "README.md").read_text("utf-8").splitlines()]
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        env = {**os.environ, "AIKORYU_NATS_URL": server.url}
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "my_agent.py", cwd=project, env=env, stderr=asyncio.subprocess.PIPE
        )
        try:
            assert agent.stderr is not None
            assert b"agents ready" in await agent.stderr.readline()
            said = []
            for words in (words[1:] for words in lines if words[:2] == ["aikoryu", "agents"]):
                assert await asyncio.to_thread(main, [*words, "--nats", server.url]) == 0
                said.append(capsys.readouterr().out)
            assert said[0].splitlines()[1].split()[:2] == ["my-agent", "1"]
            assert said[1:] == ['{"text":"Hello, Ada!"}\n', '"A"\n"d"\n"a"\n']
            agent.terminate()
            assert await agent.wait() == 0
        finally:
            if agent.returncode is None:
                agent.kill()
            await agent.communicate()


def test_what_it_writes_is_short_and_well_formed(project: Path) -> None:
    assert sorted(path.name for path in project.iterdir()) == [
        "README.md",
        "my_agent.py",
        "pyproject.toml",
        "test_my_agent.py",
    ]
    readme = (project / "README.md").read_text("utf-8").splitlines()
    assert len(readme) == 10
    assert readme[0] == "# my-agent"
    settings = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
    assert settings["project"]["name"] == "my-agent"
    assert settings["tool"]["setuptools"]["py-modules"] == ["my_agent"]
    for path in project.glob("*.py"):
        ast.parse(path.read_text("utf-8"))
        assert max(map(len, path.read_text("utf-8").splitlines())) <= 88, path


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("1st", "begin with a letter"),
        ("my agent", "is no name of an agent"),
        ("my.agent", "is no name of an agent"),
        ("class", "is no name of an agent"),
        ("asyncio", "would hide Python's module 'asyncio'"),
        ("aikoryu", "would hide Python's module 'aikoryu'"),
    ],
)
def test_names_that_cannot_be_are_refused(
    name: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", str(tmp_path / name)]) == 1
    assert why in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_is_there_is_written_over(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "my_agent.py").write_text("mine", "utf-8")
    assert main(["new", str(project)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert (project / "my_agent.py").read_text("utf-8") == "mine"
