"""Dot products of many vectors with many: every bit of a number counts, and sums are in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .ops.matrix.precision import Precision, is_half, products

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Dots:
    """How two kinds of vectors are multiplied.

    Attributes:
        parts: bf16 numbers that the left ones are the sums of, where the right ones are bf16; 1 where both are of one
            kind, and 0 where both are widened to float32 first.
        precision: of products of widened numbers.
    """

    parts: int
    precision: Precision

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> Dots:
        """What multiplies them without loss.

        Of half width numbers have no more bits than tf32 keeps. A number of float32 has as many as three of bf16, so
        that as many products on tensor cores are exact where one of tf32 is not, and nothing is copied. A CPU rounds
        products of half width to half width, so there all is widened.
        """
        import torch

        if right.is_cuda and is_half(right):
            if left.dtype == right.dtype:
                return cls(1, "highest")
            if right.dtype == torch.bfloat16:
                return cls(2 if is_half(left) else 3, "highest")
        return cls(0, "tf32" if is_half(left) and is_half(right) else "highest")

    @property
    def score_bytes(self) -> int:
        """Memory for each product, those of parts included."""
        return 4 * (1 + self.parts) if self.parts > 1 else 4

    def room(self, right: Tensor, count: int) -> Tensor:
        """(count, d) float32 for copies of right vectors; (0, d) where none are made.

        To be used again: the first use of memory takes a CPU longer than the copy.
        """
        import torch

        made = count if is_half(right) and not self.parts else 0
        return torch.empty((made, right.shape[1]), dtype=torch.float32, device=right.device)

    def vector_bytes(self, right: Tensor) -> int:
        """Of `room` for one vector."""
        return self.room(right, 1).nbytes

    def ready(self, right: Tensor, room: Tensor) -> Tensor:
        """Right vectors as `fill` takes them, no more of them than there is room for."""
        return room[: len(right)].copy_(right) if len(room) else right

    def fill(self, into: Tensor, left: Tensor, right: Tensor) -> None:
        """Multiply.

        Args:
            into: (m, n) float32.
            left: (m, d).
            right: (n, d), made ready.
        """
        import torch

        if self.parts == 1:
            torch.mm(left, right.T, out_dtype=torch.float32, out=into)
        elif self.parts:
            summands = torch.mm(split(left, self.parts).flatten(0, 1), right.T, out_dtype=torch.float32)
            torch.sum(summands.view(self.parts, *into.shape), 0, out=into)
        else:
            wide = left.float()
            with products(wide, self.precision):
                torch.mm(wide, right.T, out=into)


def split(vectors: Tensor, parts: int) -> Tensor:
    """(parts, m, d) bf16, whose sums are the numbers but for the bits that so many cannot hold; the largest first."""
    import torch

    rest, found = vectors.float(), []
    for _ in range(parts):
        found.append(rest.bfloat16())
        rest = rest - found[-1].float()
    return torch.stack(found)
