"""models.embed: text to unit vectors, by the sentence encoders in the model store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...bus.columns import Array
from ..batch import Batch
from ..device import Device
from ..models.store import BadModel, Model, find
from ..operation import Operation
from ..signature import Signature

if TYPE_CHECKING:
    from torch import Tensor

# Tokens that one forward takes, padding included, and what of it may be padding. A forward of a MiniLM layer's third
# over 256 tokens is 4 ms on one core, which bounds how long abandoned work goes on; every forward costs as much
# as 24 tokens more than its tokens do (reading 42 MB of weights), so a group of fewer pays for itself.
GROUP_TOKENS = 256
GROUP_PADDING = 24

# Texts tokenised between two checkpoints.
_TEXTS = 64


class Embed(Operation):
    """Embeds text with one model: the mean of the last layer over the tokens, scaled to length 1.

    Source: Reimers and Gurevych 2019, section 3; the answers are those of sentence-transformers.
    """

    max_rows = 1024

    def __init__(self, model: Model) -> None:
        """State the operation; no weight is read before `load`.

        Raises:
            BadModel: the model pools in another way than by the mean, or lacks a setting.
        """
        _check_pooling(model)
        self.name = f"models.embed.{model.name}"
        self.signature = Signature({"text": "utf8"}, {"embedding": f"f4[{model.dimension}]"})
        self._model = model

    def load(self, device: Device) -> None:
        """Read weights and tokenizer, and run one text, so that the first caller does not wait for either."""
        import torch

        from ..models.bert import Bert
        from ..models.tokenizer import Tokenizer

        self._tokenizer = Tokenizer(self._model)
        place = device.tensor(np.empty(0, np.float32), "f4").device
        self._bert = Bert(self._model, place, torch.float32)
        warm = Batch(1, (), {"text": ["warm"]}, None, np.ones(1, bool), device)
        self.run(warm, device)

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Embed the column `text`; texts longer than the model takes are cut at its end."""
        import torch

        tokens: list[list[int]] = []
        for start in range(0, batch.rows, _TEXTS):
            batch.checkpoint()
            tokens += self._tokenizer.encode(batch["text"][start : start + _TEXTS])
        lengths = np.fromiter(map(len, tokens), np.int64, batch.rows)
        embedding = np.zeros((batch.rows, self._model.dimension), np.float32)
        with torch.inference_mode():
            for rows in groups(lengths):
                found = self._forward(batch, device, rows, tokens, lengths[rows])
                if found is not None:
                    embedding[rows] = device.host(found)
        return {"embedding": embedding}

    def _forward(
        self, batch: Batch, device: Device, rows: Array, tokens: list[list[int]], lengths: Array
    ) -> Tensor | None:
        """Vectors of some rows of about one length, or None if nobody waits for them."""
        ids = np.zeros((len(rows), lengths[-1]), np.int64)
        for line, row, length in zip(ids, rows, lengths, strict=True):
            line[:length] = tokens[row]
        length = device.tensor(lengths, "i8")
        hidden = self._bert(device.tensor(ids, "i8"), length, lambda: batch.checkpoint(rows))
        return None if hidden is None else mean(hidden, length)


def operations(names: Sequence[str], directory: Path | None = None) -> list[Operation]:
    """An `Embed` for each model named.

    Args:
        names: of models, or paths of their directories.
        directory: where the operator keeps models.

    Raises:
        ModelMissing: one is nowhere to be found; the message says what to install.
        BadModel: one is incomplete or of a kind that does not run here.
    """
    return [Embed(find(name, directory)) for name in names]


def groups(lengths: Array) -> Iterator[Array]:
    """Cut rows into groups of about one length, by rising length.

    Args:
        lengths: (rows,) int64, tokens of each row.

    Yields:
        Row numbers of one group, the longest last: at most GROUP_TOKENS tokens in all (or one row) when padded to the
        longest, of them at most GROUP_PADDING padding.
    """
    order = np.argsort(lengths, kind="stable")
    start, used = 0, 0
    for end, length in enumerate(lengths[order].tolist()):
        padded = (end - start + 1) * length
        if end > start and (padded > GROUP_TOKENS or padded - used - length > GROUP_PADDING):
            yield order[start:end]
            start, used = end, 0
        used += length
    yield order[start:]


def mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Mean over each row's tokens, scaled to length 1.

    Args:
        hidden: (rows, tokens, d), the encoder's output; what follows a row's length is padding.
        lengths: (rows,) int64.

    Returns:
        (rows, d) float32.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812 - torch's own habit

    kept = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    # The length scaled to 1 makes the division by the number of tokens needless.
    return F.normalize((hidden.float() * kept[:, :, None]).sum(1))


def _check_pooling(model: Model) -> None:
    """Refuse models whose vectors are made in another way; a directory that says nothing is pooled by the mean."""
    for module in model.json("modules.json") or []:
        kind = module["type"].rsplit(".", 1)[-1]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise BadModel(f"{model.path}/modules.json has a module {kind}, which is not run here: use another model")
    pooling = model.json("1_Pooling/config.json")
    modes = [mode for mode, on in pooling.items() if mode.startswith("pooling_mode_") and on]
    if pooling.get("pooling_mode", "mean") != "mean" or modes not in ([], ["pooling_mode_mean_tokens"]):
        raise BadModel(f"{model.path} pools by {modes or pooling['pooling_mode']}, here the mean is run: use another model")
