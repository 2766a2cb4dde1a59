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
    import torch
    from torch import Tensor

# For each thread, the tokens of a group, padding included. A third of a MiniLM layer is 4 ms then, which bounds how
# long abandoned work goes on; smaller groups are slower (192: 1 %, 128: 7 %), larger ones no faster.
GROUP_TOKENS = 256

# How much of them may be padding: a group more costs a core as much as 24 tokens do.
GROUP_PADDING = 24

# Groups that go through the encoder together, so that they read each weight from memory once.
_GROUPS = 4

# Texts tokenised between two checkpoints, for each thread.
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
        if device.is_cuda:
            from ..models.graphs import Graphs

            with torch.inference_mode():
                bert = Bert(self._model, device.place, _half(self._model))
                self._graphs = Graphs(bert, self._model.dimension, self._model.max_tokens, device.place)
        else:
            self._bert = Bert(self._model, device.place, torch.float32)
        warm = Batch(1, (), {"text": ["warm"]}, None, np.ones(1, bool), device)
        self.run(warm, device)

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Embed the column `text`; texts longer than the model takes are cut at its end."""
        import torch

        tokens = self._tokens(batch, device.threads)
        with torch.inference_mode():
            if device.is_cuda:
                return {"embedding": self._graphs(tokens, batch.checkpoint)}
            return {"embedding": self._by_groups(batch, device, tokens)}

    def _tokens(self, batch: Batch, threads: int) -> list[list[int]]:
        tokens: list[list[int]] = []
        texts = batch["text"]
        step = _TEXTS * threads
        for start in range(0, batch.rows, step):
            batch.checkpoint()
            tokens += self._tokenizer.encode(texts[start : start + step])
        return tokens

    def _by_groups(self, batch: Batch, device: Device, tokens: list[list[int]]) -> Array:
        """Groups of about one length, padded: what suits a CPU."""
        lengths = np.fromiter(map(len, tokens), np.int64, batch.rows)
        cut = list(groups(lengths, device.threads))
        embedding = np.zeros((batch.rows, self._model.dimension), np.float32)
        for start in range(0, len(cut), _GROUPS):
            self._embed(batch, device, cut[start : start + _GROUPS], tokens, embedding)
        return embedding

    def _embed(self, batch: Batch, device: Device, cut: list[Array], tokens: list[list[int]], embedding: Array) -> None:
        """Fill the vectors of some groups of rows; those that nobody waits for stay 0."""
        from ..models.pooling import mean

        padded = [_pad([tokens[row] for row in rows], device) for rows in cut]
        hidden = self._bert(padded, lambda number: batch.checkpoint(cut[number]))
        for rows, (_, lengths), found in zip(cut, padded, hidden, strict=True):
            if found is not None:
                embedding[rows] = mean(found, lengths).numpy()


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


def groups(lengths: Array, threads: int) -> Iterator[Array]:
    """Cut rows into groups of about one length, by rising length.

    Args:
        lengths: (rows,) int64, tokens of each row.
        threads: that compute on a group.

    Yields:
        Row numbers of one group, the longest last. Padded to the longest they are at most GROUP_TOKENS a thread (or one
        row), of them at most GROUP_PADDING a thread padding.
    """
    order = np.argsort(lengths, kind="stable")
    start, used = 0, 0
    for end, length in enumerate(lengths[order].tolist()):
        padded = (end - start + 1) * length
        padding = padded - used - length
        if end > start and (padded > GROUP_TOKENS * threads or padding > GROUP_PADDING * threads):
            yield order[start:end]
            start, used = end, 0
        used += length
    if used:
        yield order[start:]


def _pad(rows: list[list[int]], device: Device) -> tuple[Tensor, Tensor]:
    """Rows of token numbers as ids (rows, longest) and lengths (rows,), both int64 on the device."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    return device.tensor(ids, "i8"), device.tensor(np.array([len(row) for row in rows]), "i8")


def _half(model: Model) -> torch.dtype:
    """float16, or bfloat16 of weights that were trained in it: they may need its range."""
    import torch

    trained = model.config.get("dtype", model.config.get("torch_dtype"))
    return torch.bfloat16 if trained == "bfloat16" else torch.float16


def _check_pooling(model: Model) -> None:
    """Refuse models whose vectors are made in another way; a directory that says nothing is pooled by the mean."""
    for module in model.json("modules.json") or []:
        kind = module["type"].rsplit(".", 1)[-1]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise BadModel(f"{model.path}/modules.json has a module {kind}, which is not run here: use another model")
    pooling = model.json("1_Pooling/config.json")
    modes = [mode for mode, on in pooling.items() if mode.startswith("pooling_mode_") and on]
    if pooling.get("pooling_mode", "mean") != "mean" or modes not in ([], ["pooling_mode_mean_tokens"]):
        raise BadModel(f"{model.path}/1_Pooling/config.json: pooling by the mean alone runs here: use another model")
