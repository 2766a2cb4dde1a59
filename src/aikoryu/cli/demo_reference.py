"""The demo's own embeddings, made without the bus: what the agents compare their answers with.

The encoder is written out here once more, from the paper and in the plainest way: one text at a time, nothing batched,
padded or fused, and nothing of the worker's own code but the place of the files.
"""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from ..bus.columns import Array
from ..gpu.models.store import Model, find
from .demo_process import be_child, tell

if TYPE_CHECKING:
    from torch import Tensor

TELL_EVERY = 16


class ReferenceTask(msgspec.Struct):
    """Sentences to embed.

    Attributes:
        model: a model's name.
        directory: where it is looked for; empty for the installed packages.
        sentences: the texts.
        path: `.npy` file to write, (sentences, d) float32.
    """

    model: str
    directory: str
    sentences: list[str]
    path: str


class Made(msgspec.Struct):
    """Sentences embedded so far."""

    sentences: int


class Encoder:
    """A BERT encoder for one text.

    Source: Devlin et al. 2019, section 3, and Vaswani et al. 2017, section 3; the mean of the last layer, scaled to
    length 1, as in Reimers and Gurevych 2019, section 3.
    """

    def __init__(self, model: Model) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self._model = model
        self._tokenizer = Tokenizer.from_file(str(model.file("tokenizer.json")))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(model.max_tokens)
        weights = load_file(model.file("model.safetensors"))
        self._weights = {name.removeprefix("bert."): weight.float() for name, weight in weights.items()}

    def embed(self, text: str) -> Array:
        """The vector of a text: (d,) float64."""
        import torch

        tokens = self._tokenizer.encode(text).ids
        words, positions, segments = (
            self._weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")
        )
        x = self._norm(words[tokens] + positions[: len(tokens)] + segments[0], "embeddings.LayerNorm")
        for index in range(self._model.integer("num_hidden_layers")):
            layer = f"encoder.layer.{index}"
            attended = self._dense(self._attention(x, f"{layer}.attention.self"), f"{layer}.attention.output.dense")
            x = self._norm(x + attended, f"{layer}.attention.output.LayerNorm")
            wide = torch.nn.functional.gelu(self._dense(x, f"{layer}.intermediate.dense"))
            x = self._norm(x + self._dense(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        mean: Array = x.numpy().mean(axis=0, dtype=np.float64)
        mean /= np.linalg.norm(mean)
        return mean

    def _attention(self, x: Tensor, name: str) -> Tensor:
        heads = self._model.integer("num_attention_heads")
        query, key, value = (
            self._dense(x, f"{name}.{part}").view(len(x), heads, -1).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[2])
        return (scores.softmax(dim=2) @ value).transpose(0, 1).reshape(len(x), -1)

    def _dense(self, x: Tensor, name: str) -> Tensor:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        variance, mean = x.var(dim=1, keepdim=True, correction=0), x.mean(dim=1, keepdim=True)
        scaled = (x - mean) / (variance + float(self._model.config.get("layer_norm_eps", 1e-12))).sqrt()
        return scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


async def embed(task: ReferenceTask, asked: asyncio.Event) -> None:
    """Write the file, telling now and then how far it is."""
    import torch

    torch.set_num_threads(1)  # the worker starts beside it
    torch.set_grad_enabled(False)
    model = find(task.model, Path(task.directory) if task.directory else None)
    encoder = Encoder(model)
    vectors = np.empty((len(task.sentences), model.dimension), np.float32)
    for row, sentence in enumerate(task.sentences):
        vectors[row] = encoder.embed(sentence)
        if row % TELL_EVERY == 0:
            tell(Made(row))
    np.save(task.path, vectors)
    tell(Made(len(task.sentences)))


def main() -> None:
    """Be the process."""
    be_child(ReferenceTask, embed)
