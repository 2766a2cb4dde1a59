"""Pooling: from the vectors of a text's tokens to one of length 1.

Each layout of a batch has its function. Scaling to length 1 makes the division by the number of tokens needless.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor


def mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Mean over each row's tokens, scaled to length 1.

    Args:
        hidden: (rows, tokens, d), the encoder's output; what follows a row's length is padding.
        lengths: (rows,) int64.

    Returns:
        (rows, d) float32.
    """
    kept = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return F.normalize((hidden.float() * kept[:, :, None]).sum(1))


def packed_mean(hidden: Tensor, starts: Tensor) -> Tensor:
    """The same of rows that lie end to end.

    Args:
        hidden: (tokens, d); what follows the last row is never read, so it may hold anything, NaN too.
        starts: (rows + 1,) int32, rising: where each row begins, and where the last ends.

    Returns:
        (rows, d) float32, 0 for rows without a token.
    """
    return F.normalize(torch.segment_reduce(hidden.float(), "sum", offsets=starts, axis=0, unsafe=True))
