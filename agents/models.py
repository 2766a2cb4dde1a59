"""Neural networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..bus.client import Client
from ..bus.errors import BadColumn, NoWorker
from ..bus.pending import RowsFailed

Vectors: TypeAlias = NDArray[np.float32]

DEFAULT_EMBEDDING = "all-MiniLM-L6-v2"


class Models:
    """Models the workers hold, by name."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def embed(
        self, text: str | Sequence[str], *, model: str = DEFAULT_EMBEDDING, timeout_s: float | None = None
    ) -> Vectors:
        """Sentence embeddings: mean-pooled and of length 1, so that a dot product is the cosine similarity.

        Args:
            text: a sentence, or n of them.
            model: a model some worker holds.
            timeout_s: how long to wait, s.

        Returns:
            (d,) for one sentence, (n, d) for n, float32; d is the model's width, 384 for the default. (0, 0) for none.

        Raises:
            BadColumn: `text` is neither a str nor a sequence of str; nothing was sent.
            NoWorker: no worker holds this model.
            RowsFailed: some of the sentences got another error.
        """
        operation = f"models.embed.{model}"
        if isinstance(text, str):
            row = await self._client.call(operation, {"text": text}, timeout_s=timeout_s, idempotent=True)
            vector: Vectors = row["embedding"]
            return vector
        texts = _texts(text)
        if not texts:
            return np.empty((0, 0), np.float32)
        try:
            rows = await self._client.call_many(operation, {"text": texts}, timeout_s=timeout_s, idempotent=True)
        except RowsFailed as failed:
            if all(isinstance(error, NoWorker) for error in failed.errors.values()):
                raise next(iter(failed.errors.values())) from None
            raise
        vectors: Vectors = rows["embedding"]
        return vectors


def _texts(given: Sequence[str]) -> list[str]:
    try:
        texts = list(given)
    except TypeError:
        raise BadColumn(f"text is {type(given).__name__}: give a str, or a sequence of str") from None
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadColumn(f"text {row} is {type(text).__name__}: give a str, or a sequence of str")
    return texts
