"""Which GPUs there are and how they are, on drivers that are not here."""

from __future__ import annotations

import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from aikoryu.gpu.nvml import READINGS, Gpu, Health, select, visible

UUIDS = ["GPU-aa11", "GPU-ab22", "GPU-cc33"]


class Driver:
    """Looks like pynvml on a machine with these GPUs.

    Attributes:
        opened: sessions that are open.
        asked: times a function was called.
        broken: functions that fail.
    """

    NVML_TEMPERATURE_GPU = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0

    class NVMLError(Exception):
        """Whatever the driver says no with."""

    def __init__(self, *uuids: str) -> None:
        self.opened = 0
        self.asked: Counter[str] = Counter()
        self.broken: set[str] = set()
        self.lost: set[str] = set()
        self._answers: dict[str, Any] = {
            "nvmlDeviceGetCount": lambda: len(uuids),
            "nvmlDeviceGetHandleByIndex": lambda index: self._there(uuids[index]),
            "nvmlDeviceGetHandleByUUID": lambda uuid: self._there(uuid),
            "nvmlDeviceGetUUID": lambda uuid: uuid.encode(),
            "nvmlDeviceGetName": lambda uuid: f"model of {uuid}",
            "nvmlDeviceGetMemoryInfo": lambda uuid: SimpleNamespace(total=80 << 30, used=3 << 30),
            "nvmlDeviceGetCudaComputeCapability": lambda uuid: [9, 0],
            "nvmlDeviceGetUtilizationRates": lambda uuid: SimpleNamespace(gpu=25, memory=99),
            "nvmlDeviceGetTemperature": lambda uuid, sensor: 41,
            "nvmlDeviceGetPowerUsage": lambda uuid: 350_500,
            "nvmlDeviceGetTotalEnergyConsumption": lambda uuid: 12_000,
            "nvmlDeviceGetTotalEccErrors": lambda uuid, kind, counter: 2 if (kind, counter) == (1, 0) else 99,
        }

    def _there(self, uuid: str) -> str:
        if uuid in self.lost:
            raise self.NVMLError
        return uuid

    def nvmlInit(self) -> None:  # noqa: N802 - its name
        if "nvmlInit" in self.broken:
            raise self.NVMLError
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802 - its name
        self.opened -= 1

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: Any) -> Any:
            self.asked[name] += 1
            assert self.opened, "the driver must be open"
            if name in self.broken:
                raise self.NVMLError
            return self._answers[name](*arguments)

        return ask


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver(*UUIDS)
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("GPU-cc33", [2]),
        ("GPU-c", [2]),
        ("GPU-ab,0", [1, 0]),
        # One that does not exist hides those that follow.
        ("-1", []),
        ("0,-1,1", [0]),
        ("1,3,0", [1]),
        ("0,,1", [0]),
        ("0,GPU-dd,1", [0]),
        ("GPU-a", []),
        ("none", []),
        ("²,0", []),
        # One named twice hides all.
        ("0,0", []),
        ("1,GPU-ab22", []),
        ("0,1,2,0", []),
    ],
)
def test_what_cuda_would_show(wanted: str | None, chosen: list[int]) -> None:
    assert select(UUIDS, wanted) == chosen


class TestVisible:
    def test_all_in_the_drivers_order(self, driver: Driver) -> None:
        assert visible({}) == [
            Gpu(f"cuda:{number}", uuid, f"model of {uuid}", 80 << 30, (9, 0)) for number, uuid in enumerate(UUIDS)
        ]
        assert driver.opened == 0

    def test_numbers_are_those_of_cuda(self, driver: Driver) -> None:
        found = visible({"CUDA_VISIBLE_DEVICES": "2,GPU-aa"})
        assert [(gpu.device, gpu.uuid) for gpu in found] == [("cuda:0", "GPU-cc33"), ("cuda:1", "GPU-aa11")]

    def test_environment_is_asked(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        assert [gpu.uuid for gpu in visible()] == ["GPU-ab22"]

    def test_gpu_that_has_failed_is_left_out(self, driver: Driver) -> None:
        driver.lost.add("GPU-aa11")
        assert [(gpu.device, gpu.uuid) for gpu in visible({})] == [("cuda:0", "GPU-ab22"), ("cuda:1", "GPU-cc33")]

    def test_none_without_a_driver(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        driver.broken.add("nvmlInit")
        assert visible({}) == []
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert visible({}) == []


class TestHealth:
    def test_every_reading_in_its_unit(self, driver: Driver) -> None:
        figures = Health("cuda:1").read()
        assert figures == {
            "gpu_busy_ratio": 0.25,
            "gpu_memory_used_bytes": 3 << 30,
            "gpu_temperature_celsius": 41,
            "gpu_power_watts": 350.5,
            "gpu_energy_joules": 12,
            "gpu_uncorrected_errors": 2,
        }
        assert list(figures) == list(READINGS)

    def test_what_the_driver_does_not_give_is_left_out(self, driver: Driver) -> None:
        driver.broken |= {"nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetUtilizationRates"}
        assert Health("cuda:0").read().keys() == READINGS.keys() - {"gpu_uncorrected_errors", "gpu_busy_ratio"}

    def test_driver_is_asked_once_a_second_and_stays_open(self, driver: Driver) -> None:
        now = 100.0
        health = Health("cuda:0", clock=lambda: now)
        first = health.read()
        now = 100.9
        assert health.read() == first
        assert driver.asked["nvmlDeviceGetPowerUsage"] == 1
        now = 101.0
        health.read()
        assert driver.asked["nvmlDeviceGetPowerUsage"] == 2
        assert (driver.asked["nvmlDeviceGetHandleByUUID"], driver.opened) == (1, 1)

    def test_driver_that_comes_is_found(self, driver: Driver) -> None:
        now = 0.0
        health = Health("cuda:0", clock=lambda: now)
        driver.broken.add("nvmlInit")
        assert health.read() == {}
        driver.broken.clear()
        now = 1.0
        assert health.read().keys() == READINGS.keys()

    def test_nothing_is_known_of_a_gpu_that_is_not_there(self, driver: Driver) -> None:
        assert Health("cuda:3").read() == {}
        assert driver.opened == 0

    def test_nothing_is_known_of_a_gpu_that_was_lost(self, driver: Driver) -> None:
        now = 0.0
        health = Health("cuda:0", clock=lambda: now)
        assert health.read()
        driver.broken |= {name for name in driver._answers if name != "nvmlDeviceGetCount"}
        now = 1.0
        assert health.read() == {}
