"""sentence-transformers' own `encode` of many texts, on the device, in the process that asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NEEDS = ("sentence-transformers",)
MAX_TOKENS = 256


def encoder(path: Path, device: str, half: bool) -> Any:
    """The model as its library loads it; of a directory without its modules they are put together here.

    Args:
        path: the model's directory.
        device: `cpu` or `cuda`.
        half: in float16, instead of the float32 that is the library's default.
    """
    from sentence_transformers import SentenceTransformer, models

    if (path / "modules.json").is_file():
        model = SentenceTransformer(str(path), device=device)
    else:
        words = models.Transformer(str(path), max_seq_length=MAX_TOKENS)
        parts = [words, models.Pooling(words.get_word_embedding_dimension(), pooling_mode="mean"), models.Normalize()]
        model = SentenceTransformer(modules=parts, device=device)
    return model.half() if half else model.float()


def encode(model: Any, texts: list[str], batch: int) -> Any:
    """(n, d) unit vectors of n texts."""
    return model.encode(texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
