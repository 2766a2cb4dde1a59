"""Devices: where a batch runs, and how its columns get there and back.

One implementation on torch serves every device; torch is loaded when the first tensor is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..bus.columns import Array

if TYPE_CHECKING:
    import torch


class Device:
    """One device of an engine.

    Attributes:
        name: `cpu`, as it stands in replies and metrics.
        threads: threads one operation may compute with.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.threads = threads

    def open(self) -> None:
        """Claim the device in the process that will run on it. Without torch only NumPy operations can run."""
        try:
            import torch
        except ImportError:
            return
        torch.set_num_threads(self.threads)
        torch.set_grad_enabled(False)

    def tensor(self, array: Array, dtype: str) -> torch.Tensor:
        """A host array as a tensor on the device; on `cpu` it shares the memory.

        Args:
            array: any of the bus's dtypes, C-contiguous.
            dtype: its wire name; tells bf16 from u2.
        """
        import torch

        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if dtype == "bf16" else tensor

    def host(self, value: Any) -> Array:
        """A result as a host array (bf16 as its bits); NumPy arrays pass through."""
        if isinstance(value, np.ndarray):
            return value
        import torch

        tensor = value.detach().cpu()
        array: Array = tensor.contiguous().view(torch.uint16).numpy() if _is_bf16(tensor) else tensor.numpy()
        return array


def _is_bf16(tensor: torch.Tensor) -> bool:
    return str(tensor.dtype) == "torch.bfloat16"
