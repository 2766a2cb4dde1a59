"""Running a worker: what `up`, `worker` and the demo have in common."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..agents import open_transport
from ..bus.errors import BusError
from ..bus.transport import Transport
from ..config import Settings
from . import systemd
from .failure import Failed
from .progress import say
from .stopping import Stop

if TYPE_CHECKING:
    from ..gpu.fleet import Fleet
    from ..gpu.worker import Worker

UNANSWERED = 3  # what a service manager may take for a stop, and an operator for a `worker.drain_s` that is too short
_NEEDED = ("torch", "prometheus_client")  # looked for, not loaded: torch is the engine's, which is another process
HOW_TO_STOP = "Ctrl-C stops it after what it has accepted is answered, a second Ctrl-C at once."


async def serve_until(stop: Stop, settings: Settings, greeting: Callable[[Worker | Fleet], str]) -> int:
    """Run a worker for a person, until a signal.

    Args:
        stop: what the signals ask for.
        settings: all groups.
        greeting: what to print when the worker is ready.

    Returns:
        The exit status: `UNANSWERED` if requests were left unanswered.

    Raises:
        Failed, ConnectionFailed: as for `serve`.
    """

    def announce(worker: Worker | Fleet) -> None:
        stop.drains = True
        print(greeting(worker), HOW_TO_STOP, sep="\n", flush=True)
        systemd.tell("READY=1")

    with systemd.watched():
        return 0 if await serve(settings, stop.asked, announce) else UNANSWERED


async def serve(settings: Settings, asked: asyncio.Event, announce: Callable[[Worker | Fleet], None]) -> bool:
    """Run a worker until `asked` is set, then answer what it has accepted.

    Args:
        settings: all groups.
        asked: asks for the end.
        announce: called when the worker is ready.

    Returns:
        False if requests were left unanswered because `worker.drain_s` had passed.

    Raises:
        Failed: the worker does not start.
        ConnectionFailed: the NATS server cannot be reached.
    """
    async with AsyncExitStack() as stack:
        worker = await _start(settings, stack)
        announce(worker)
        try:
            await asked.wait()
        except asyncio.CancelledError:  # asked twice before the first was heard
            await _stop_at_once(worker)
            raise
        return await worker.stop()


async def _stop_at_once(worker: Worker | Fleet) -> None:
    """End a worker and its processes without waiting for what it has accepted."""
    stopping = asyncio.ensure_future(worker.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait({stopping})


async def _start(settings: Settings, stack: AsyncExitStack) -> Worker | Fleet:
    """Start a worker; where the settings leave the device open and no GPU's engine starts, on the CPU."""
    for name in _NEEDED:
        if find_spec(name) is None:
            raise Failed(f"a worker needs {name}: pip install 'aikoryu[worker]'")
    from ..gpu.engines import devices_of

    # What cannot be reached is said before processes are started that cannot reach it either.
    transport = await open_transport(settings)
    stack.push_async_callback(transport.close)
    try:
        return await _start_on(devices_of(settings), transport, settings)
    except Failed as error:
        if settings.worker.device != "auto" or devices_of(settings) == ["cpu"]:
            raise
        say(f"No engine on a GPU ({error}). Going on without one; set worker.device=cpu to start like this at once.")
        on_cpu = replace(settings, worker=replace(settings.worker, device="cpu"))
        return await _start_on(["cpu"], transport, on_cpu)


async def _start_on(devices: list[str], transport: Transport, settings: Settings) -> Worker | Fleet:
    from ..gpu.fleet import Fleet
    from ..gpu.probes import why_not
    from ..gpu.worker import Worker

    try:
        alone = settings.worker.fronts == len(devices) == 1
        worker = Worker(transport, settings) if alone else Fleet(settings)
    except BusError:
        raise
    except Exception as error:  # a module of the user's may raise anything
        raise Failed(_why_not_loaded(error)) from error
    _tell_of_empty(settings.worker.operations)
    try:
        await worker.start()
    except RuntimeError as error:
        raise Failed(f"{error}; its log is above, and `aikoryu doctor` looks for what is missing") from None
    except OSError as error:
        raise Failed(why_not(settings.worker, error)) from None
    return worker


def _tell_of_empty(modules: Sequence[str]) -> None:
    """Say which of the user's modules, which are loaded, have no operations."""
    from ..gpu.registry import Catalogue, load

    built_in = load(Catalogue()).keys()
    for module in modules:
        if load(Catalogue(modules=(module,))).keys() == built_in:
            say(f"No operations in {module}: put @aikoryu.operation above the functions that shall be some.")


def _why_not_loaded(error: Exception) -> str:
    if isinstance(error, ImportError | LookupError | ValueError) and not isinstance(error, KeyError | IndexError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"the operations cannot be loaded: {type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
