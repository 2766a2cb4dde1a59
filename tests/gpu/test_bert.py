"""The encoder against an independent one in float64 NumPy, on a small random model and on real weights."""

from __future__ import annotations

import json
import math
import pydoc_data.topics
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra `worker`")
safetensors_numpy = pytest.importorskip("safetensors.numpy", reason="needs the extra `models`")

from aikoryu.gpu.models.bert import Bert  # noqa: E402 - only where the extras are
from aikoryu.gpu.models.store import BadModel, Model, ModelMissing, find  # noqa: E402

Array = np.ndarray[Any, Any]
SMALL = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "layer_norm_eps": 1e-12,
}
CPU = torch.device("cpu")


class Reference:
    """BERT's encoder in float64 NumPy, one row at a time and without padding, written from the paper."""

    def __init__(self, path: Path) -> None:
        self.config = json.loads((path / "config.json").read_text())
        weights = safetensors_numpy.load_file(path / "model.safetensors")
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}

    def __call__(self, ids: list[int]) -> Array:
        """(tokens,) to (tokens, d)."""
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][: len(ids)] + w["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, "embeddings.LayerNorm")
        for number in range(self.config["num_hidden_layers"]):
            name = f"encoder.layer.{number}"
            attended = self._dense(self._attention(x, f"{name}.attention.self"), f"{name}.attention.output.dense")
            x = self._norm(x + attended, f"{name}.attention.output.LayerNorm")
            wide = self._dense(x, f"{name}.intermediate.dense")
            wide = wide * 0.5 * (1 + _erf(wide / math.sqrt(2)))
            x = self._norm(x + self._dense(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        return x

    def _attention(self, x: Array, name: str) -> Array:
        heads = self.config["num_attention_heads"]
        size = x.shape[1] // heads
        query, key, value = (self._dense(x, f"{name}.{part}") for part in ("query", "key", "value"))
        found = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = query[:, part] @ key[:, part].T / math.sqrt(size)
            share = np.exp(scores - scores.max(1, keepdims=True))
            found.append(share / share.sum(1, keepdims=True) @ value[:, part])
        return np.concatenate(found, 1)

    def _dense(self, x: Array, name: str) -> Array:
        found: Array = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return found

    def _norm(self, x: Array, name: str) -> Array:
        x = x - x.mean(1, keepdims=True)
        x = x / np.sqrt((x**2).mean(1, keepdims=True) + self.config["layer_norm_eps"])
        found: Array = x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return found


def _erf(x: Array) -> Array:
    return np.fromiter(map(math.erf, x.ravel()), np.float64, x.size).reshape(x.shape)


def write_model(path: Path, dtype: str = "f4", prefix: str = "", without: str = "", **config: Any) -> Model:
    """A small BERT of random weights."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**SMALL, **config}))
    d, wide = 24, 40
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (50, d),
        "embeddings.position_embeddings.weight": (20, d),
        "embeddings.token_type_embeddings.weight": (2, d),
    }
    names: dict[str, tuple[int, ...]] = {"embeddings.LayerNorm": (d,)}
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for part in ("query", "key", "value"):
            names[f"{layer}.attention.self.{part}"] = (d, d)
        names[f"{layer}.attention.output.dense"] = (d, d)
        names[f"{layer}.attention.output.LayerNorm"] = (d,)
        names[f"{layer}.intermediate.dense"] = (wide, d)
        names[f"{layer}.output.dense"] = (d, wide)
        names[f"{layer}.output.LayerNorm"] = (d,)
    for name, shape in names.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    random = np.random.default_rng(7)
    tensors = {prefix + name: random.normal(0, 0.5, shape).astype(dtype) for name, shape in shapes.items()}
    safetensors_numpy.save_file(
        {name: tensor for name, tensor in tensors.items() if name != without}, path / "model.safetensors"
    )
    return find(str(path))


def encode(bert: Bert, rows: list[list[int]], filler: int = 0) -> list[Array]:
    """One group of the rows, padded with a token; each row's part of the answer."""
    ids = torch.full((len(rows), max(map(len, rows))), filler)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
    (found,) = bert([(ids, torch.tensor([len(row) for row in rows]))], lambda number: True)
    assert found is not None
    return [found[number, : len(row)].double().numpy() for number, row in enumerate(rows)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Other tests' load on the machine stalls threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bert, Reference]:
    model = write_model(tmp_path_factory.mktemp("models") / "small")
    return Bert(model, CPU, torch.float32), Reference(model.path)


tokens = st.lists(st.integers(0, 49), min_size=1, max_size=20)


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(tokens, min_size=1, max_size=6), filler=st.integers(0, 49))
def test_small_model_is_the_reference(small: tuple[Bert, Reference], rows: list[list[int]], filler: int) -> None:
    bert, reference = small
    for row, found in zip(rows, encode(bert, rows, filler), strict=True):
        np.testing.assert_allclose(found, reference(row), atol=2e-5, rtol=0)


def test_groups_at_once_are_the_groups_alone(small: tuple[Bert, Reference]) -> None:
    bert, _ = small
    groups = [(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([3, 2])), (torch.tensor([[7]]), torch.tensor([1]))]
    together = bert(groups, lambda number: True)
    alone = [bert([group], lambda number: True)[0] for group in groups]
    for one, other in zip(together, alone, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other)


def test_row_of_padding_alone_is_finite(small: tuple[Bert, Reference]) -> None:
    bert, _ = small
    (found,) = bert([(torch.zeros(2, 5, dtype=torch.int64), torch.tensor([5, 0]))], lambda number: True)
    assert found is not None
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("looks", range(7))
def test_checkpoint_drops_its_group_alone(small: tuple[Bert, Reference], looks: int) -> None:
    bert, reference = small
    asked = [0, 0]

    def checkpoint(number: int) -> bool:
        asked[number] += 1
        return number == 1 or asked[number] <= looks

    group = (torch.tensor([[1, 2, 3]]), torch.tensor([3]))
    dropped, kept = bert([group, group], checkpoint)
    assert (dropped is None) == (looks < 6)  # three looks a layer, two layers
    assert asked == [min(looks + 1, 6), 6]
    assert kept is not None
    np.testing.assert_allclose(kept[0].double().numpy(), reference([1, 2, 3]), atol=2e-5, rtol=0)


def test_float16_weights_are_computed_in_float32(tmp_path: Path) -> None:
    model = write_model(tmp_path / "half", dtype="f2")
    (found,) = encode(Bert(model, CPU, torch.float32), [[3, 1, 4, 1, 5]])
    np.testing.assert_allclose(found, Reference(model.path)([3, 1, 4, 1, 5]), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
def test_compute_dtype(tmp_path: Path, dtype: Any, atol: float) -> None:
    model = write_model(tmp_path / "small")
    rows = [[3, 1, 4, 1, 5], [9, 2]]
    reference = Reference(model.path)
    for row, found in zip(rows, encode(Bert(model, CPU, dtype), rows), strict=True):
        np.testing.assert_allclose(found, reference(row), atol=atol, rtol=0)


def test_weights_saved_with_a_head(tmp_path: Path) -> None:
    plain = Bert(write_model(tmp_path / "plain"), CPU, torch.float32)
    headed = Bert(write_model(tmp_path / "headed", prefix="bert."), CPU, torch.float32)
    assert np.array_equal(encode(plain, [[1, 2]])[0], encode(headed, [[1, 2]])[0])


def test_missing_weight_is_named(tmp_path: Path) -> None:
    model = write_model(tmp_path / "lacking", without="encoder.layer.1.output.dense.bias")
    with pytest.raises(BadModel, match=r"lacks the weight 'encoder\.layer\.1\.output\.dense\.bias'"):
        Bert(model, CPU, torch.float32)


def test_broken_weights(tmp_path: Path) -> None:
    model = write_model(tmp_path / "broken")
    (model.path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(BadModel, match=r"model\.safetensors cannot be read"):
        Bert(model, CPU, torch.float32)


@pytest.mark.parametrize(
    ("key", "value"), [("model_type", "roberta"), ("hidden_act", "relu"), ("position_embedding_type", "relative_key")]
)
def test_other_architectures_are_refused(tmp_path: Path, key: str, value: str) -> None:
    model = write_model(tmp_path / "other", **{key: value})
    with pytest.raises(BadModel, match=f"has {key} '{value}'"):
        Bert(model, CPU, torch.float32)


def test_real_weights_on_real_sentences() -> None:
    try:
        model = find("all-MiniLM-L6-v2")
    except ModelMissing:
        pytest.skip("needs the extra `models`")
    tokenizer = pytest.importorskip("aikoryu.gpu.models.tokenizer", reason="needs the extra `models`").Tokenizer(model)
    text = " ".join(pydoc_data.topics.topics[name] for name in ("booleans", "lambda", "pass"))
    sentences = [part for part in re.split(r"(?<=[.:])\s+", text) if 10 < len(part) < 90][:8]
    rows = tokenizer.encode(sentences)
    assert len(set(map(len, rows))) > 3
    reference = Reference(model.path)
    for row, found in zip(rows, encode(Bert(model, CPU, torch.float32), rows), strict=True):
        wanted = reference(row)
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)
        a, b = found.mean(0), wanted.mean(0)
        assert a @ b / math.sqrt((a @ a) * (b @ b)) > 0.9999999
