"""How precisely numbers are multiplied: what is a switch of the process to torch, as a choice of each product.

That f2 and bf16 are summed in float32 throughout, with no partial sums rounded in between, `CudaDevice.open` sees to.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Precision: TypeAlias = Literal["highest", "tf32"]
"""How f4 is multiplied on CUDA: as it is, or rounded to the 10 bits of TensorFloat-32, up to 8 times as fast."""

_float32_products = threading.Lock()
_AS_IT_IS = nullcontext()


def products(like: Tensor, precision: Precision = "highest") -> AbstractContextManager[None]:
    """Multiply in this precision what is enqueued inside, whatever other threads enqueue at the same time.

    cuBLAS reads its choice when a product is enqueued, from one switch of the process. So threads take turns, at
    enqueueing only, which takes microseconds; of solutions, up to milliseconds.

    Args:
        like: an operand; the precision matters, and others are waited for, only if it is f4 on CUDA.
        precision: for these products.
    """
    import torch

    return _in_turn(precision) if like.is_cuda and like.dtype == torch.float32 else _AS_IT_IS


@contextmanager
def _in_turn(precision: Precision) -> Iterator[None]:
    import torch

    with _float32_products:
        if precision == "highest":
            yield
            return
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.fp32_precision = "ieee"


def is_half(tensor: Tensor) -> bool:
    """Whether the numbers are f2 or bf16."""
    return tensor.is_floating_point() and tensor.itemsize == 2


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """f2 and bf16 as f4, others as they are."""
    return [tensor.float() if is_half(tensor) else tensor for tensor in tensors]
