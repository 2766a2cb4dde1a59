"""Dot products against float64: no bit of a number is dropped."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.gpu.device import Device  # noqa: E402 - only where torch is
from aikoryu.gpu.dots import Dots, split  # noqa: E402

F4, F2, BF16 = torch.float32, torch.float16, torch.bfloat16


def drawn(rows: int, width: int, seed: int) -> Any:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("right", [F4, F2, BF16])
@pytest.mark.parametrize("left", [F4, F2, BF16])
def test_only_sums_are_rounded(device: Device, left: Any, right: Any) -> None:
    with device.stream():
        tasks, agents = (drawn(rows, 384, rows).to(device.place) for rows in (37, 500))
        tasks, agents = tasks.to(left), agents.to(right)
        dots = Dots.of(tasks, agents)
        wider = torch.full((37, 512), torch.nan, device=device.place)
        dots.fill(wider[:, :500], tasks, dots.ready(agents, dots.room(agents, 600)))
        error = (wider[:, :500].double() - tasks.double() @ agents.double().T).abs().max()
        assert float(error) <= 1e-4  # of tf32, or of queries rounded to bf16, 1e-2 and more
        assert bool(wider[:, 500:].isnan().all())


def test_three_bf16_are_a_float32(device: Device) -> None:
    numbers = drawn(10, 100, 1).to(device.place) * 10.0 ** torch.arange(-15, 10, 2.5, device=device.place)[:, None]
    parts = split(numbers, 3)
    assert parts.dtype == BF16
    assert torch.equal(parts.double().sum(0), numbers.double())
    half = numbers[4:7].half()  # neither infinite nor nothing
    assert torch.equal(split(half, 2).double().sum(0), half.double())


def test_vectors_of_half_width_are_not_copied_on_a_gpu(device: Device) -> None:
    numbers = drawn(2, 8, 1).to(device.place)
    for left, right in ((F4, BF16), (F2, BF16), (BF16, BF16), (F2, F2)):
        dots = Dots.of(numbers.to(left), numbers.to(right))
        assert dots.vector_bytes(numbers.to(right)) == (0 if device.is_cuda else 32)
    assert Dots.of(numbers, numbers).vector_bytes(numbers) == 0
