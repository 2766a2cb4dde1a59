"""`aikoryu auth`: what it writes, what it refuses, and that what it prints works as it stands."""

from __future__ import annotations

import json
import re
import shlex
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nkeys
import numpy as np
import pytest
import trustme

import aikoryu
from aikoryu.bus.server import find_server
from aikoryu.cli import main
from aikoryu.config import load

from .conftest import Start, eventually


def init(folder: Path, *arguments: str) -> int:
    return main(["auth", "init", str(folder), *arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def public_key(seed: bytes) -> str:
    return str(nkeys.from_seed(bytearray(seed)).public_key.decode())


def test_it_writes_a_configuration_the_server_takes_and_seeds_of_its_users(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "auth"
    assert init(folder) == 0
    written = contents(folder)
    config = written.pop("nats-server.conf").decode()
    assert sorted(written) == ["agent.seed", "caller.seed", "operator.seed", "worker.seed"]
    assert len(set(written.values())) == 4
    assert [name for name, seed in written.items() if public_key(seed) not in config] == []
    assert [name for name, seed in written.items() if seed.decode() in config] == []
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in written} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    subprocess.run([find_server(), "-t", "-c", folder / "nats-server.conf"], check=True, capture_output=True)


def test_a_recorder_is_there_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(tmp_path) == 0
    assert "aikoryu record" not in capsys.readouterr().out
    assert init(tmp_path, "--recorder", "--update") == 0
    assert "  aikoryu record FILE --subjects 'matrix.>' " in capsys.readouterr().out
    assert public_key((tmp_path / "recorder.seed").read_bytes()) in (tmp_path / "nats-server.conf").read_text()


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(tmp_path) == 0
    before = contents(tmp_path)
    assert init(tmp_path) == 1
    assert "nats-server.conf is there already: name another directory, or say --update" in capsys.readouterr().err
    (tmp_path / "nats-server.conf").unlink()
    assert init(tmp_path) == 1
    assert "caller.seed is there already" in capsys.readouterr().err
    assert contents(tmp_path) == {name: seed for name, seed in before.items() if name.endswith(".seed")}


def test_update_adds_a_user_and_keeps_the_seeds(tmp_path: Path) -> None:
    assert init(tmp_path, "--callers", "alice", "bob") == 0
    before = contents(tmp_path)
    assert init(tmp_path, "--callers", "alice", "carol", "--update") == 0
    after = contents(tmp_path)
    config = after["nats-server.conf"].decode()
    assert after.keys() - before.keys() == {"carol.seed"}
    assert [name for name in before if before[name] != after[name]] == ["nats-server.conf"]
    assert [public_key(after[f"{name}.seed"]) in config for name in ("alice", "carol", "bob")] == [True, True, False]


def test_update_refuses_a_file_that_is_no_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("", "no seed", nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER).decode()[:-3]):
        (tmp_path / "caller.seed").write_text(text)
        assert init(tmp_path, "--update") == 1
        assert "caller.seed holds no NKey seed: restore it, or remove it" in capsys.readouterr().err
    assert not (tmp_path / "nats-server.conf").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--callers", "agent"], "two users are called 'agent'"),
        (["--agents", "../x"], "user '../x': use letters"),
        (["--tls-cert", __file__], "a certificate and its key go together"),
        (["--tls-cert", __file__, "--tls-key", "no-such.pem"], "no-such.pem: no such file; docs/security.md says how"),
        (["--operations", "/no/such.py"], "/no/such.py: no such file of operations"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert init(tmp_path / "auth", *arguments) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "auth").exists()


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert init(tmp_path / "file") == 1
    assert "file cannot be written (File exists)" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["init", "streams"])
def test_help_fits_a_terminal(action: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["auth", action, "--help"])
    text = capsys.readouterr().out
    assert f"  aikoryu auth {action} " in text
    assert max(map(len, text.splitlines())) <= 80


# --- what it prints works -------------------------------------------------------------------------------------------


def listens(port: int) -> bool:
    with socket.socket() as knocking:
        return knocking.connect_ex(("127.0.0.1", port)) == 0


class Printed:
    """What the command printed, its placeholders filled in; `commands` by their first two words."""

    def __init__(self, text: str, **fill: str) -> None:
        for placeholder, value in fill.items():
            text = text.replace(placeholder, value)
        self.commands: dict[str, list[list[str]]] = {}
        for line in re.findall(r"^  (.*)$", text, re.MULTILINE):
            words = shlex.split(line)
            self.commands.setdefault(" ".join(words[:2]), []).append(words)

    def settings(self, user: str) -> aikoryu.Settings:
        (words,) = (words for words in self.commands["aikoryu ls"] if f"nats.inbox_prefix=_INBOX_{user}" in words)
        return load(flags=dict(word.split("=", 1) for word in words if "=" in word))


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def printed(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Printed]:
    """A server started as printed."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    arguments = ["--callers", "alice", "--agents", "planner", "--operations", "examples/own_operation.py"]
    arguments += ["--recorder", "--set", f"server.port={port}", "--set", "bus.namespace=secured"]
    if request.param:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
        arguments += ["--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.pem")]
    assert init(tmp_path / "an auth", *arguments) == 0
    found = Printed(capsys.readouterr().out, HOST="127.0.0.1", **{"CA.pem": str(tmp_path / "ca.pem")})
    ((_, *rest),) = found.commands["nats-server -c"]
    with subprocess.Popen([find_server(), *rest], stderr=subprocess.DEVNULL) as server:
        try:
            eventually(lambda: listens(port), "the server listens")
            yield found
        finally:
            server.terminate()


async def test_worker_and_clients_started_as_printed(printed: Printed, start: Start) -> None:
    ((_, *words),) = printed.commands["aikoryu auth"]
    for _ in range(2):
        made = start(*words)
        assert made.end() == 0, made.words
        durable = [f"aikoryu-secured-{name}" for name in ("RESULTS", "DEAD", "JOBS")]
        owned = ["KV_aikoryu-secured-leases", "aikoryu-secured-log", "aikoryu-secured-snapshot"]
        shared = [
            "KV_aikoryu-secured-locks",
            "KV_aikoryu-secured-shared",
            "aikoryu-secured-buried",
            "aikoryu-secured-tasks",
            "aikoryu-secured-state",
        ]
        assert [line.split()[0] for line in made.heard] == durable + owned + shared
    ((_, *words),) = printed.commands["aikoryu worker"]
    worker = start(*words, "--set", "models.embed=", "--set", "worker.name=w1", "--set", "jobs.in_flight=0")
    worker.hear("Worker w1 serves")
    a, b = np.arange(6, dtype="f4").reshape(2, 3), np.arange(12, dtype="f4").reshape(3, 4)
    for user in ("alice", "planner"):
        async with aikoryu.connect(settings=printed.settings(user)) as bus:
            np.testing.assert_array_equal(await bus.matrix.matmul(a, b), a @ b)
            assert (await bus.call("demo.scale", {"x": [1.0, 2.0]}, {"factor": 3.0}))["y"].tolist() == [3, 6]
            handle = await bus.matrix.put(b)
            np.testing.assert_array_equal(await bus.matrix.get(handle), b)
            chunks = [chunk async for chunk in bus.stream("echo", [{"x": a}, {"x": a + 1}])]
            np.testing.assert_array_equal(np.concatenate([chunk["x"] for chunk in chunks]), np.concatenate([a, a + 1]))
            assert [found["id"] for found in await bus.workers()] == ["w1"]
            with pytest.raises(aikoryu.NoWorker):
                await bus.call("other.operation", {"x": 1})
    words = next(words for words in printed.commands["aikoryu ls"] if "nats.inbox_prefix=_INBOX_alice" in words)
    ls = start(*words[1:], "--json")
    assert ls.end() == 0
    assert [found["id"] for found in json.loads(ls.words)] == ["w1"]
    assert "server refused" not in worker.words + ls.words


def test_a_recorder_started_as_printed_listens(printed: Printed, start: Start, tmp_path: Path) -> None:
    ((_, *words),) = printed.commands["aikoryu record"]
    recorder = start(*(str(tmp_path / "bus.rec") if word == "FILE" else word for word in words))
    recorder.hear("Recording matrix.> of ")
    recorder.interrupt()
    assert recorder.end() == 0, recorder.words
    assert "0 requests and 0 answers" in recorder.words
    (_, *words) = next(words for words in printed.commands["aikoryu ls"] if "nats.inbox_prefix=_INBOX_alice" in words)
    refused = start("record", str(tmp_path / "other.rec"), "--subjects", "matrix.>", *words[1:])
    assert refused.end() == 1
    assert "does not let this user subscribe to " in refused.words
    assert not (tmp_path / "other.rec").exists()


def test_a_worker_with_the_seed_of_a_caller_does_not_start(printed: Printed, start: Start) -> None:
    ((_, *words),) = printed.commands["aikoryu worker"]
    worker = start(*(word.replace("worker.seed", "alice.seed") for word in words), "--set", "jobs.in_flight=0")
    assert worker.end() == 1
    assert "does not let this user subscribe to " in worker.words
    assert "Traceback" not in worker.words
