"""Faults in an engine: what an operation does wrong, on a GPU for real.

Every operation's `run` is wrapped on the instance, in an engine that was started for it: the executor knows nothing of
faults, and what contains them is what contains real ones.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NoReturn

import structlog

from ..bus.faults import Faults
from .batch import Batch
from .device import Device, DeviceLost, OutOfMemory
from .job import Inject
from .operation import Operation

ENDLESS_CYCLES = 1 << 62
CALIBRATION_CYCLES = 10_000_000  # about 5 ms

_log = structlog.get_logger(__name__)


class Injected(RuntimeError):
    """What an operation raises because it was asked to."""


class Injector:
    """Lets the operations of one engine misbehave.

    Args:
        operations: of the engine, loaded.
        device: where they run.

    Attributes:
        injected: how often something went wrong, by kind.
    """

    def __init__(self, operations: Iterable[Operation], device: Device) -> None:
        self.injected: Counter[str] = Counter()
        self._faults = Faults()
        self._orders: set[str] = set()
        self._device = device
        for operation in operations:
            # On the instance, where it hides the class's own.
            vars(operation)["run"] = partial(self._run, operation, operation.run)

    def take(self, order: Inject) -> None:
        """Replace the rules, unless this order has come before, from another front or a connection made again."""
        if order.name not in self._orders:
            self._orders.add(order.name)
            self._faults = Faults(order.rules)
            _log.warning("faults in force", rules=[rule.kind for rule in order.rules])

    def figures(self) -> dict[str, float]:
        """How often something went wrong, by name of the metric."""
        return {f"faults_{kind}": float(count) for kind, count in self.injected.items()}

    def fail(self) -> NoReturn:
        """Raise as an operation with a mistake would."""
        raise Injected("the fault injector raised this")

    def memory(self) -> None:
        """Have no room."""
        raise OutOfMemory(f"{self._device.name} has no room for the batch, says the fault injector")

    def slow(self, seconds: float) -> None:
        """Take longer."""
        time.sleep(seconds)

    def hang(self) -> None:
        """Never end."""
        while True:
            time.sleep(3600)

    def poison(self) -> None:
        """Make the device unusable for this process."""
        raise DeviceLost("the fault injector took the device")

    def die(self) -> None:
        """End the process, which cannot say anything more."""
        os.kill(os.getpid(), signal.SIGKILL)

    def _run(self, operation: Operation, run: Any, batch: Batch, device: Device) -> Mapping[str, Any]:
        rule = self._faults.draw(time.monotonic())
        if rule is None:
            answer: Mapping[str, Any] = run(batch, device)
            return answer
        self.injected[rule.kind] += 1
        count = self.injected[rule.kind]
        if count & (count - 1) == 0:  # the 1st, 2nd, 4th, 8th: many faults are not as many lines
            _log.warning("fault injected", kind=rule.kind, operation=operation.name, rows=batch.rows, count=count)
        match rule.kind:
            case "raise":
                self.fail()
            case "memory":
                self.memory()
            case "slow":
                self.slow(rule.seconds)
            case "hang":
                self.hang()
            case "poison":
                self.poison()
            case "die":
                self.die()
        answer = run(batch, device)
        return {name: column[:-1] for name, column in answer.items()} if rule.kind == "wrong" else answer


class CudaInjector(Injector):
    """Lets a GPU misbehave: what goes wrong is enqueued on the batch's stream, and found as it would be any day."""

    _cycles_a_second = 0.0

    def memory(self) -> None:
        """Ask for more memory than the GPU has; torch's own error is the answer."""
        import torch

        total = torch.cuda.get_device_properties(self._device.place).total_memory
        torch.empty(2 * total, dtype=torch.uint8, device=self._device.place)

    def slow(self, seconds: float) -> None:
        """Occupy the stream."""
        import torch

        if not self._cycles_a_second:
            self._cycles_a_second = self._measured()
        torch.cuda._sleep(int(seconds * self._cycles_a_second))

    def hang(self) -> None:
        """Enqueue a kernel that does not end in this century."""
        import torch

        torch.cuda._sleep(ENDLESS_CYCLES)

    def poison(self) -> None:
        """Write to address 0; without CuPy, read past a tensor's end where the kernel itself asserts that none does."""
        try:
            import cupy
        except ImportError:
            import torch

            torch.zeros(1, device=self._device.place)[torch.ones(1, dtype=torch.long, device=self._device.place)]
        else:
            kernel = cupy.RawKernel('extern "C" __global__ void poison(int* at) { *at = 1; }', "poison")
            kernel((1,), (1,), (cupy.uint64(0),))

    def _measured(self) -> float:
        """Clock cycles a second of the GPU, as its kernel for waiting counts them."""
        import torch

        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(CALIBRATION_CYCLES)  # the clock may have been low
        begin.record()
        torch.cuda._sleep(CALIBRATION_CYCLES)
        end.record()
        end.synchronize()
        return CALIBRATION_CYCLES / float(begin.elapsed_time(end)) * 1e3


def injector(operations: Iterable[Operation], device: Device) -> Injector:
    """The injector for the operations of an engine."""
    return (CudaInjector if device.is_cuda else Injector)(operations, device)
