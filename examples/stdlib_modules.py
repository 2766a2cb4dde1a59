"""The modules of Python's library as text: what each says of itself, what could be asked of it, and what it imports.

Files are read, nothing is imported. `python examples/stdlib_modules.py` prints a module a line.
"""

import ast
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

LIBRARY = Path(sysconfig.get_path("stdlib"))
TESTS = {"test", "tests", "idle_test"}
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass
class Module:
    """A module of the library.

    Attributes:
        says: its name and its docstring.
        questions: first sentences of its public functions and classes, but those it says itself or shares with others.
        imports: the modules of the library that it imports.
    """

    says: str
    questions: list[str] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)


def library(folder: Path = LIBRARY) -> dict[str, Module]:
    """All modules that have a source, by name."""
    trees = {name: (ast.parse(path.read_bytes()), path.name == "__init__.py") for name, path in sources(folder)}
    found = {name: Module(f"{name}: {ast.get_docstring(tree) or ''}") for name, (tree, _) in trees.items()}
    asked = {name: dict.fromkeys(questions(tree)) for name, (tree, _) in trees.items()}
    heard = Counter(plain(text) for texts in asked.values() for text in texts)
    for name, (tree, is_package) in trees.items():
        known = plain(found[name].says)
        found[name].questions = [text for text in asked[name] if heard[plain(text)] == 1 and plain(text) not in known]
        wanted = imported(tree, name if is_package else name.rpartition(".")[0])
        found[name].imports = {one for each in wanted if (one := nearest(each, found))} - {name}
    return found


def sources(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each module's name and file; tests are none."""
    for top in sorted(sys.stdlib_module_names):
        for path in [folder / f"{top}.py", *sorted((folder / top).rglob("*.py"))]:
            parts = path.relative_to(folder).with_suffix("").parts
            if path.is_file() and not TESTS & set(parts):
                yield ".".join(parts).removesuffix(".__init__"), path


def questions(tree: ast.Module) -> Iterator[str]:
    """The first sentence of each public function and class."""
    for each in tree.body:
        if isinstance(each, Documented) and not each.name.startswith("_") and (text := first_sentence(each)):
            yield text


def imported(tree: ast.Module, package: str) -> Iterator[str]:
    """The names that a module imports, wherever in it; `package` is what its relative imports are of."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def nearest(name: str, modules: dict[str, Module]) -> str:
    """The module of a name: itself or the nearest above it; empty where there is none."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def first_sentence(documented: Documented) -> str:
    """That of its docstring; empty if it has less than four words."""
    text = re.split(r"(?<=[.!?])\s|\n\s*\n", ast.get_docstring(documented) or "", maxsplit=1)[0].replace("\n", " ")
    return text if len(words(text)) >= 4 else ""


def words(text: str) -> list[str]:
    """Its words in lower case; thoseOfNames, too."""
    return re.findall(r"[a-z]+|\d+", re.sub(r"([a-z])([A-Z])", r"\1 \2", text).lower())


def plain(text: str) -> str:
    """Its words and nothing else."""
    return " ".join(words(text))


def bags_of_words(texts: Sequence[str], known: Sequence[str], dimension: int = 384) -> NDArray[np.float32]:
    """Vectors without a model: words by how rare they are (TF-IDF), each at a place that its hash gives.

    Args:
        texts: n of them.
        known: those that tell how rare words are; words of none of them are left out.
        dimension: d; words that share a place are taken for each other.

    Returns:
        (n, d) of length 1, zeros for a text without such words.
    """
    texts_with = Counter(word for text in known for word in set(words(text)))
    vectors = np.zeros((len(texts), dimension), np.float32)
    for vector, text in zip(vectors, texts, strict=True):
        for word, times in Counter(filter(texts_with.get, words(text))).items():
            place = crc32(word.encode())
            rarity = np.log((len(known) + 1) / (texts_with[word] + 1))
            vector[place % dimension] += (1 if place >> 31 else -1) * (1 + np.log(times)) * rarity
    return straight(vectors)


def straight(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same directions, each of length 1; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, np.where(lengths > 0, lengths, 1), dtype=np.float32)


if __name__ == "__main__":
    for name, module in library().items():
        print(f"{name}: {len(module.questions)} questions, imports {', '.join(sorted(module.imports)) or 'none'}")
