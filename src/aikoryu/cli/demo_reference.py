"""The demo's own embeddings, made without the bus: what the agents compare their answers with.

One text at a time, so nothing is batched, padded, queued or sent; the mean is NumPy's, in float64.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import numpy as np

from .demo_process import be_child, tell

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


async def embed(task: ReferenceTask, asked: asyncio.Event) -> None:
    """Write the file, telling now and then how far it is."""
    import torch

    from ..gpu.models.bert import Bert
    from ..gpu.models.store import find
    from ..gpu.models.tokenizer import Tokenizer

    torch.set_num_threads(1)  # the worker starts beside it
    model = find(task.model, Path(task.directory) if task.directory else None)
    tokenizer = Tokenizer(model)
    bert = Bert(model, torch.device("cpu"), torch.float32)
    vectors = np.empty((len(task.sentences), model.dimension), np.float32)
    with torch.inference_mode():
        for row, sentence in enumerate(task.sentences):
            (tokens,) = tokenizer.encode([sentence])
            hidden = bert(torch.tensor([tokens]), torch.tensor([len(tokens)]), lambda: True)
            assert hidden is not None, "this checkpoint stops nothing"
            mean = hidden[0].numpy().mean(axis=0, dtype=np.float64)
            vectors[row] = mean / np.linalg.norm(mean)
            if row % TELL_EVERY == 0:
                tell(Made(row))
    np.save(task.path, vectors)
    tell(Made(len(task.sentences)))


def main() -> None:
    """Be the process."""
    be_child(ReferenceTask, embed)
