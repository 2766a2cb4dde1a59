"""The faults, and how each is caused while calls go on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .stage import Stage

OUTAGE_S = 1.0

Cause = Callable[[Stage, float], Awaitable[int]]
"""Lets a fault happen, once or for so many seconds, and returns when they are over: how often it happened."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: of it.
        what: happens, in a few words.
        cause: lets it happen.
        seconds: how long calls go on at least.
        proxied: the load comes through the proxy.
    """

    name: str
    what: str
    cause: Cause
    seconds: float = 4.0
    proxied: bool = False


def _ruled(*rules: str) -> Cause:
    """Rules that hold for the whole time."""

    async def cause(stage: Stage, seconds: float) -> int:
        await stage.inject(*rules)
        await asyncio.sleep(seconds)
        return await stage.inject()

    return cause


def _fatal(rule: str) -> Cause:
    """A rule that costs the engine its process, which is then another."""

    async def cause(stage: Stage, seconds: float) -> int:
        before = stage.engine_pid
        await stage.inject(rule)
        await asyncio.sleep(seconds)
        await stage.inject()
        return int(stage.engine_pid != before)

    return cause


async def _kill_engine(stage: Stage, seconds: float) -> int:
    stage.kill_engine()
    await asyncio.sleep(seconds)
    return 1


async def _kill_fronts(stage: Stage, seconds: float) -> int:
    for _ in range(2):
        stage.kill_front()
        await asyncio.sleep(seconds / 2)
    return 2


async def _kill_server(stage: Stage, seconds: float) -> int:
    stage.kill_server()
    await asyncio.sleep(seconds)
    return 1


async def _stall(stage: Stage, seconds: float) -> int:
    stage.proxy.stall()
    await asyncio.sleep(OUTAGE_S)
    stage.proxy.mend()
    await asyncio.sleep(max(0.0, seconds - OUTAGE_S))
    return 1


async def _cut(stage: Stage, seconds: float) -> int:
    stage.proxy.stall()
    await asyncio.sleep(OUTAGE_S)
    stage.proxy.cut()
    stage.proxy.mend()
    await asyncio.sleep(max(0.0, seconds - OUTAGE_S))
    return 1


FAULTS = (
    Fault("raise", "5 % of the batches raise", _ruled("raise:0.05")),
    Fault("memory", "5 % of the batches find no memory on the device", _ruled("memory:0.05")),
    Fault("wrong", "5 % of the batches give an answer of a wrong shape", _ruled("wrong:0.05")),
    Fault("slow", "10 % of the batches take 20 ms longer", _ruled("slow=0.02:0.1")),
    Fault("hang", "a batch never ends", _fatal("hang@0.2"), seconds=6.0),
    Fault("poison", "a batch breaks the device's context", _fatal("poison@0.2"), seconds=6.0),
    Fault("die", "the engine dies in a batch", _fatal("die@0.2"), seconds=6.0),
    Fault("kill engine", "the engine is ended by kill -9", _kill_engine, seconds=6.0),
    Fault("kill fronts", "fronts are ended by kill -9, one after the other", _kill_fronts, seconds=6.0),
    Fault("drop", "1 % of a front's messages are lost, both ways", _ruled("drop:0.01")),
    Fault("delay", "10 % of them come 50 ms late", _ruled("delay=0.05:0.1")),
    Fault("duplicate", "10 % of them come twice", _ruled("duplicate:0.1")),
    Fault("reorder", "10 % of them come after the next", _ruled("reorder:0.1")),
    Fault("disconnect", "the fronts' connections break", _ruled("disconnect@0.2", "disconnect@1.5")),
    Fault("stall", "nothing comes through to the callers for a second", _stall, proxied=True),
    Fault("cut", "the callers' connections are silent for a second, then reset", _cut, proxied=True),
    Fault("kill server", "nats-server is ended by kill -9, and started again", _kill_server, seconds=6.0),
)
