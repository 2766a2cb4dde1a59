"""A model's directory of MiniLM's shape with random weights: the same work where the real one is not at hand."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

Array = np.ndarray[Any, Any]
CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
LONGEST = 256
SEED = 5


def write(path: Path) -> list[str]:
    """Write config.json, model.safetensors, tokenizer.json and what sentence-transformers wants beside them.

    Args:
        path: the directory, made if missing.

    Returns:
        Words that are one token each.
    """
    path.mkdir(parents=True, exist_ok=True)
    words = _words(CONFIG["vocab_size"] - 200)
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LONGEST, "do_lower_case": False}))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | _SPECIAL))
    _tokenizer(words).save(str(path / "tokenizer.json"))
    safetensors.numpy.save_file(_weights(), path / "model.safetensors", metadata={"format": "pt"})
    return words


_SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def _words(count: int) -> list[str]:
    """Different random words, of 2 to 8 letters."""
    chosen = random.Random(SEED)
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(chosen.choices(string.ascii_lowercase, k=chosen.randint(2, 8)))] = None
    return list(found)


def _tokenizer(words: list[str]) -> tokenizers.Tokenizer:
    """BERT's: lower case, split at space and punctuation, longest pieces first."""
    pieces = [*_SPECIAL.values(), *string.printable[:94], *(f"##{letter}" for letter in string.ascii_lowercase), *words]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[SEP]", "[CLS]")]
    made.post_processor = processors.BertProcessing(*ends)
    return made


def _weights() -> dict[str, Array]:
    """Scaled so that attention prefers some tokens, and no layer's sum drowns the text."""
    made = np.random.default_rng(SEED)
    d, wide = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings": (CONFIG["vocab_size"], d),
        "embeddings.position_embeddings": (CONFIG["max_position_embeddings"], d),
        "embeddings.token_type_embeddings": (CONFIG["type_vocab_size"], d),
        "embeddings.LayerNorm": (d,),
    }
    for layer in (f"encoder.layer.{number}" for number in range(CONFIG["num_hidden_layers"])):
        shapes |= {f"{layer}.attention.self.{part}": (d, d) for part in ("query", "key", "value")}
        shapes[f"{layer}.attention.output.dense"] = (d, d)
        shapes[f"{layer}.attention.output.LayerNorm"] = (d,)
        shapes[f"{layer}.intermediate.dense"] = (wide, d)
        shapes[f"{layer}.output.dense"] = (d, wide)
        shapes[f"{layer}.output.LayerNorm"] = (d,)
    found: dict[str, Array] = {}
    for name, shape in shapes.items():
        found[f"{name}.weight"] = made.normal(len(shape) == 1, 0.05, shape).astype(np.float32)
        if "_embeddings" not in name:
            found[f"{name}.bias"] = made.normal(0, 0.05, shape[0]).astype(np.float32)
    return found
