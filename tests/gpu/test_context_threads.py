"""In which order a process's device is claimed, and what is done with it."""

from __future__ import annotations

import pytest

from aikoryu.gpu.context.threads import DeviceThreads
from aikoryu.gpu.device import Device, DeviceLost


class Claimed(Device):
    """Writes down that it is claimed."""

    def __init__(self, said: list[str], error: Exception | None = None) -> None:
        super().__init__("cpu", 1)
        self._said = said
        self._error = error

    def open(self) -> None:
        self._said.append("claimed")
        if self._error is not None:
            raise self._error


async def test_what_is_loaded_is_told_once_and_before_anything_is_made_with_it() -> None:
    said: list[str] = []
    lost: list[DeviceLost] = []
    threads = DeviceThreads(Claimed(said), None, lost.append, lambda: said.append("loaded"))
    await threads.make(lambda: said.append("made"))
    await threads.use(lambda: said.append("used"))
    await threads.use(lambda: said.append("used"))
    threads.stop(wait=True)
    assert said == ["claimed", "loaded", "made", "claimed", "used", "used"]
    assert not lost


async def test_a_device_that_cannot_be_claimed_is_lost() -> None:
    said: list[str] = []
    lost: list[DeviceLost] = []
    threads = DeviceThreads(Claimed(said, OSError("no driver")), None, lost.append, lambda: said.append("loaded"))
    with pytest.raises(DeviceLost, match="cpu cannot be used: no driver"):
        await threads.make(lambda: said.append("made"))
    threads.stop(wait=True)
    assert said == ["claimed"]
    assert [str(each) for each in lost] == ["cpu cannot be used: no driver"]
