"""The model that an embedding benchmark on a device measures: the real MiniLM where it is, else its shape."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

from aikoryu.config import load
from aikoryu.gpu.models.store import Model, ModelMissing, find
from benchmarks.processes import ROOT

MODEL = "all-MiniLM-L6-v2"
TRAINED, RANDOM = "trained", "random weights"
_SPECIAL = 2  # tokens around a text


def find_model(folder: Path) -> tuple[Model, str]:
    """The model of the settings' directory or an installed package, else one of random weights.

    Args:
        folder: where the latter is written.

    Returns:
        The model, and which it is: `TRAINED` or `RANDOM`.
    """
    configured = load().models.directory
    try:
        return find(MODEL, Path(configured) if configured else None), TRAINED
    except ModelMissing:
        spec = importlib.util.spec_from_file_location("random_minilm", ROOT / "tests" / "gpu" / "random_minilm.py")
        assert spec is not None, "a path that ends in .py has a loader"
        assert spec.loader is not None, "a path that ends in .py has a loader"
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.write(folder / MODEL)
        return find(MODEL, folder), RANDOM


def sentences(model: Model, count: int, tokens: int) -> list[str]:
    """Random sentences of whole-word tokens, so many each with the two special ones; other ones each time."""
    vocabulary = json.loads(model.file("tokenizer.json").read_text())["model"]["vocab"]
    words = [word for word in vocabulary if word.isascii() and word.isalpha() and word.islower() and len(word) > 2]
    draw = random.Random()
    return [" ".join(draw.choices(words, k=tokens - _SPECIAL)) for _ in range(count)]
