"""`bus.matrix` against a worker: every method, arrays of any strides, and shapes that arrive together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, assert_type

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.agents import Matrix, session
from aikoryu.bus.errors import BadColumn, BadParameter, BadValue
from aikoryu.bus.memory import MemoryBus
from aikoryu.config import ModelSettings, Settings
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker

Array = NDArray[Any]
RANDOM = np.random.default_rng(0)
A, B = RANDOM.normal(size=(2, 4, 4))
C = RANDOM.normal(size=(2, 3, 4))


class Served:
    """A worker whose batches a test may hold, and what agents have of it."""

    def __init__(self, agents: AsyncExitStack) -> None:
        self.settings = Settings(models=ModelSettings(embed=()))
        self.bus = MemoryBus()
        self.engine = InlineEngine(load(catalogue_of(self.settings)), slots=1, slab_bytes=1 << 20)
        self.worker = Worker(self.bus.connect("_WORKER"), self.settings, [self.engine])
        self._agents = agents

    async def agent(self) -> Matrix:
        return (await self._agents.enter_async_context(session(self.bus.connect(), self.settings))).matrix


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with AsyncExitStack() as agents:
        made = Served(agents)
        await made.worker.start()
        agents.push_async_callback(made.worker.stop)
        yield made


@pytest.fixture
async def matrix(served: Served) -> Matrix:
    return await served.agent()


async def turns() -> None:
    """Let what was asked for reach the worker."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda matrix: matrix.matmul(A, B), A @ B),
        (lambda matrix: matrix.matmul(A, B[0], precision="tf32"), A @ B[0]),
        (lambda matrix: matrix.add(A, B[0]), A + B[0]),
        (lambda matrix: matrix.subtract(A, 2), A - 2),
        (lambda matrix: matrix.multiply(2.5, A), 2.5 * A),
        (lambda matrix: matrix.einsum("ij,jk,kl->li", A, B, A), (A @ B @ A).T),
        (lambda matrix: matrix.einsum("ii->", A), np.trace(A)),
        (lambda matrix: matrix.solve(A, B), np.linalg.solve(A, B)),
        (lambda matrix: matrix.solve(A, B[0]), np.linalg.solve(A, B[0])),
        (lambda matrix: matrix.reduce(A, "mean"), A.mean()),
        (lambda matrix: matrix.reduce(A, "norm", axis=(1,), keepdims=True), np.linalg.norm(A, axis=1, keepdims=True)),
        (lambda matrix: matrix.transpose(A), A.T),
        (lambda matrix: matrix.transpose(C, (1, 2, 0)), C.transpose(1, 2, 0)),
        (lambda matrix: matrix.reduce([1, 2, 3], "prod"), np.float32(6)),
    ],
)
async def test_methods_are_numpys(matrix: Matrix, ask: Callable[[Matrix], Awaitable[Array]], expected: Any) -> None:
    found = np.asarray(await ask(matrix))
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T,
        lambda x: x[::-1],
        lambda x: x[:, ::-2].repeat(2, axis=1),
        lambda x: np.asfortranarray(x),
        lambda x: np.tile(x, (2, 2))[1::2, ::2],
        lambda x: np.broadcast_to(x[:1], (4, 4)),
        lambda x: x.astype(">f8"),
    ],
    ids=["transposed", "reversed", "backwards", "fortran", "sliced", "broadcast", "big-endian"],
)
async def test_arrays_of_any_strides_arrive_right(matrix: Matrix, view: Callable[[Array], Array]) -> None:
    a = view(A)
    np.testing.assert_allclose(await matrix.matmul(a, B), a @ B, rtol=1e-12)
    np.testing.assert_array_equal(await matrix.add(B, a), B + a)
    np.testing.assert_array_equal(await matrix.transpose(a), a.T)


async def test_errors_are_typed(matrix: Matrix) -> None:
    with pytest.raises(BadParameter, match="spec 'ij': write a letter"):
        await matrix.einsum("ij", A)
    with pytest.raises(BadColumn, match="einsum takes one to 4 operands, not 0"):
        await matrix.einsum("->")
    with pytest.raises(BadColumn, match="column 'a' is bool: send f2 or"):
        await matrix.reduce(A > 0, "sum")
    with pytest.raises(BadParameter, match="axis 2 of a row with 2 dimensions"):
        await matrix.reduce(A, "sum", axis=2)


async def test_singular_matrix_fails_its_own_call(served: Served, matrix: Matrix) -> None:
    singular = A.copy()
    singular[2] = 0
    found = await asyncio.gather(*(matrix.solve(a, B) for a in (A, singular, B)), return_exceptions=True)
    assert [job.rows for job in served.engine.jobs] == [3]
    assert isinstance(found[1], BadValue)
    for a, x in ((A, found[0]), (B, found[2])):
        np.testing.assert_allclose(np.asarray(x), np.linalg.solve(a, B), rtol=1e-12, atol=1e-12)


async def test_shapes_that_arrive_together_are_a_batch_each(served: Served) -> None:
    """100 calls of 10 agents, of 10 shapes."""
    agents = [await served.agent() for _ in range(10)]
    served.engine.hold = True
    first = asyncio.ensure_future(agents[0].add(1, 2))
    await turns()
    assert len(served.engine.jobs) == 1
    operands = [RANDOM.normal(size=(2, size, size)) for size in range(1, 11) for _ in agents]
    calls = [asyncio.ensure_future(agents[n % 10].matmul(*pair)) for n, pair in enumerate(operands)]
    await turns()
    served.engine.release()
    for found, (a, b) in zip(await asyncio.gather(*calls), operands, strict=True):
        np.testing.assert_allclose(found, a @ b, rtol=1e-10)
    assert await first == 3
    assert [job.rows for job in served.engine.jobs] == [1, *[10] * 10]


async def test_types(matrix: Matrix) -> None:
    assert_type(await matrix.einsum("ij->ji", A), NDArray[Any])
    assert_type(await matrix.solve(A, [1.0, 2.0, 3.0, 4.0]), NDArray[Any])
    assert_type(await matrix.reduce(A, "sum", axis=[0]), NDArray[Any])
    assert_type(await matrix.transpose(A, [1, 0]), NDArray[Any])
