"""sentence-transformers' own `encode` of many texts, on the device, in the process that asks."""

from __future__ import annotations

import importlib
import json
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
    from sentence_transformers import SentenceTransformer

    if (path / "modules.json").is_file():
        model = SentenceTransformer(str(path), device=device)
    else:
        model = SentenceTransformer(modules=_modules(path), device=device)
    return model.half() if half else model.float()


def _modules(path: Path) -> list[Any]:
    """Transformer, mean pooling, scaling to length one, from where the library's versions have them."""
    try:
        parts: Any = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    except ImportError:
        parts = importlib.import_module("sentence_transformers.models")
    words = parts.Transformer(str(path), max_seq_length=MAX_TOKENS)
    dimension = json.loads((path / "config.json").read_text())["hidden_size"]
    return [words, parts.Pooling(dimension, pooling_mode="mean"), parts.Normalize()]


def encode(model: Any, texts: list[str], batch: int) -> Any:
    """(n, d) unit vectors of n texts."""
    return model.encode(texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
