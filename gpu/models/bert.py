"""BERT encoders in plain torch, read from a Hugging Face directory.

The forward holds no Python that depends on the data, so one shape of it can be captured as a CUDA graph and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .store import BadModel, Model

Checkpoint = Callable[[int], bool]
"""Whether the group of this number still interests anybody."""

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From queries, keys and values of packed rows, each (tokens, heads, d of a head), to what each token found."""

# Added to the attention scores of padding. exp() of it is 0 in every dtype, it fits float16, and unlike -inf it leaves
# a row of nothing but padding (a graph's unused rows) finite.
_PADDING_SCORE = -30000.0


class Bert:
    """An encoder with its weights on one device."""

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        """Read the weights.

        Args:
            model: a directory with config.json and model.safetensors (float32, float16 or bfloat16).
            device: where they go.
            dtype: what to compute in; weights of another dtype are converted.

        Raises:
            BadModel: the directory holds another architecture, or weights are missing or cannot be read.
        """
        _check(model)
        self._heads = model.integer("num_attention_heads")
        self._dtype = dtype
        weights = _Weights(model, device, dtype)
        self._words = weights["embeddings.word_embeddings.weight"]
        # Every token is of segment 0, so its embedding is part of each position's.
        segment = weights["embeddings.token_type_embeddings.weight"][0]
        self._positions = weights["embeddings.position_embeddings.weight"] + segment
        self._norm = weights.norm("embeddings.LayerNorm", model)
        self._layers = [
            _Layer.read(weights, f"encoder.layer.{index}", model) for index in range(model.integer("num_hidden_layers"))
        ]

    def __call__(self, groups: Sequence[tuple[Tensor, Tensor]], checkpoint: Checkpoint) -> list[Tensor | None]:
        """Encode groups of rows, each group padded to one length.

        A layer's half is done for all groups before the next: weights come from memory once for all of them, which
        saves 4 % on a core with 256 tokens a group.

        Args:
            groups: pairs of ids and lengths. ids: (rows, tokens) int64, token numbers even after a row's length, where
                they are ignored; tokens at most the model's positions. lengths: (rows,) int64, tokens of each row.
            checkpoint: asked before each third of a layer of a group; false drops the group.

        Returns:
            For each group (rows, tokens, d) of the compute dtype, meaningless where there is padding; None if dropped.
        """
        states = {number: self._enter(ids, lengths) for number, (ids, lengths) in enumerate(groups)}
        for layer in self._layers:
            for half in (layer.attend, layer.feed):
                for number, state in list(states.items()):
                    if not half(state, partial(checkpoint, number)):
                        del states[number]
        return [
            states[number].hidden.view(*ids.shape, -1) if number in states else None
            for number, (ids, _) in enumerate(groups)
        ]

    def packed(self, ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Encode rows that lie end to end, so that there is no padding between them.

        Args:
            ids: (tokens,) int32, token numbers of all rows.
            positions: (tokens,) int32, each token's place in its row.
            attention: knows where rows begin and end; nothing else mixes tokens.

        Returns:
            (tokens, d) of the compute dtype.
        """
        words = F.embedding(ids, self._words)
        hidden = self._norm(words.add_(F.embedding(positions, self._positions)))
        for layer in self._layers:
            hidden = layer.packed(hidden, self._heads, attention)
        return hidden

    def _enter(self, ids: Tensor, lengths: Tensor) -> _State:
        rows, tokens = ids.shape
        padding = torch.arange(tokens, device=ids.device) >= lengths[:, None]
        scores = padding.to(self._dtype).mul_(_PADDING_SCORE)[:, None, None, :]
        words = F.embedding(ids.view(-1), self._words).view(rows, tokens, -1)
        hidden = self._norm(words.add_(self._positions[:tokens]))
        return _State(hidden.view(rows * tokens, -1), scores, (rows, tokens, 3, self._heads, -1))


@dataclass(slots=True)
class _State:
    """A group on its way through the layers.

    Attributes:
        hidden: (rows * tokens, d), what the next layer takes.
        scores: (rows, 1, 1, tokens), added to the attention scores.
        split: shape (rows, tokens, 3, heads, d of a head) of the queries, keys and values.
    """

    hidden: Tensor
    scores: Tensor
    split: tuple[int, ...]


class _Linear(NamedTuple):
    """A dense layer. The weight lies (in, out): up to a sixth faster than (out, in) below 32 tokens, equal above."""

    weight: Tensor
    bias: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        return torch.addmm(self.bias, values, self.weight)


class _Norm(NamedTuple):
    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, values: Tensor) -> Tensor:
        return F.layer_norm(values, self.weight.shape, self.weight, self.bias, self.epsilon)


class _Layer(NamedTuple):
    """One layer, after Devlin et al. 2019 (section 3) and Vaswani et al. 2017 (section 3.1), norms after the sums."""

    query_key_value: _Linear
    attended: _Linear
    attended_norm: _Norm
    widened: _Linear
    narrowed: _Linear
    narrowed_norm: _Norm

    @classmethod
    def read(cls, weights: _Weights, name: str, model: Model) -> _Layer:
        return cls(
            weights.linear(*(f"{name}.attention.self.{part}" for part in ("query", "key", "value"))),
            weights.linear(f"{name}.attention.output.dense"),
            weights.norm(f"{name}.attention.output.LayerNorm", model),
            weights.linear(f"{name}.intermediate.dense"),
            weights.linear(f"{name}.output.dense"),
            weights.norm(f"{name}.output.LayerNorm", model),
        )

    def attend(self, state: _State, go: Callable[[], bool]) -> bool:
        """Self-attention; false, and nothing done, if `go` says so."""
        if not go():
            return False
        query, key, value = self.query_key_value(state.hidden).view(state.split).permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=state.scores)
        joined = found.transpose(1, 2).reshape(state.hidden.shape)
        state.hidden = self.attended_norm(self.attended(joined).add_(state.hidden))
        return True

    def packed(self, hidden: Tensor, heads: int, attention: Attention) -> Tensor:
        """All of the layer, without a look: (tokens, d) to the same."""
        split = self.query_key_value(hidden).view(len(hidden), 3, heads, -1)
        found = attention(*split.unbind(1)).reshape(hidden.shape)
        hidden = self.attended_norm(self.attended(found).add_(hidden))
        wide = F.gelu(self.widened(hidden))
        return self.narrowed_norm(self.narrowed(wide).add_(hidden))

    def feed(self, state: _State, go: Callable[[], bool]) -> bool:
        """The feed-forward part; false, and the state unchanged, if `go` says so before either of its products."""
        if not go():
            return False
        wide = F.gelu(self.widened(state.hidden))
        if not go():
            return False
        state.hidden = self.narrowed_norm(self.narrowed(wide).add_(state.hidden))
        return True


class _Weights:
    """The tensors of a model.safetensors by name, each copied to the device in the compute dtype."""

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        self._path = model.file("model.safetensors")
        self._device = device
        self._dtype = dtype
        try:
            self._file = safe_open(self._path, framework="pt")
        except SafetensorError as error:
            raise BadModel(f"{self._path} cannot be read ({error}): get the model's directory again") from None
        names = set(self._file.keys())
        # A checkpoint saved with a head on it (BertForMaskedLM, ...) holds the encoder under this name.
        self._prefix = "" if "embeddings.word_embeddings.weight" in names else "bert."
        self._names = names

    def __getitem__(self, name: str) -> Tensor:
        name = self._prefix + name
        if name not in self._names:
            raise BadModel(f"{self._path} lacks the weight {name!r}: it is no complete BERT encoder, get it again")
        tensor: Tensor = self._file.get_tensor(name)
        return tensor.to(self._device, self._dtype, copy=True)

    def linear(self, *names: str) -> _Linear:
        weight = torch.cat([self[f"{name}.weight"] for name in names])
        return _Linear(weight.t().contiguous(), torch.cat([self[f"{name}.bias"] for name in names]))

    def norm(self, name: str, model: Model) -> _Norm:
        return _Norm(self[f"{name}.weight"], self[f"{name}.bias"], float(model.config.get("layer_norm_eps", 1e-12)))


def _check(model: Model) -> None:
    """Refuse what this forward would compute wrongly."""
    known = {"model_type": ("bert", None), "hidden_act": ("gelu", "gelu"), "position_embedding_type": ("absolute",) * 2}
    for key, (wanted, default) in known.items():
        found = model.config.get(key, default)
        if found != wanted:
            raise BadModel(f"{model.path}/config.json has {key} {found!r}, but {wanted!r} runs here: use another model")
