"""Does blending help a question find who knows? `python -m benchmarks.context_example [--json OUT]`, 1 minute.

Agents are the modules of Python's library, as `examples/stdlib_modules.py` reads them; each hears the modules that it
imports, those that import it, or both. Questions are sentences of the library whose module is known.
"""

from __future__ import annotations

import argparse
import ast
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from examples.stdlib_modules import LIBRARY, Documented, Module, bags_of_words, first_sentence, library, plain, straight
from numpy.typing import NDArray

from aikoryu.gpu.context.graph import ContextGraph
from aikoryu.gpu.context.propagate import settle
from benchmarks import context_table, minilm, record

Vectors: TypeAlias = NDArray[np.float32]
Numbers: TypeAlias = NDArray[np.int64]
Embed: TypeAlias = Callable[[Sequence[str]], Vectors]

ALPHAS = (0.3, 0.5, 0.7, 0.9)
EPSILON = 1e-3
HEARD = ("imports", "importers", "both")
DEPTHS = (1, 5, 16)
SILENT = (0.1, 0.5)  # shares of agents that say nothing
SILENCES = 5  # draws of who they are
RESAMPLES = 2000
SEED = 6


@dataclass(frozen=True)
class Asked:
    """Questions whose answer is known.

    Attributes:
        title: what they are.
        texts: n of them.
        right: (n,) the number of the module that each is about.
    """

    title: str
    texts: list[str]
    right: Numbers


@dataclass(frozen=True)
class Configuration:
    """A way to blend and to compare; without edges it is the agents' own contexts."""

    heard: str
    alpha: float
    score: str


def questions_of_modules(modules: Mapping[str, Module]) -> Asked:
    """What modules say of their functions and classes."""
    pairs = [(text, number) for number, each in enumerate(modules.values()) for text in each.questions]
    return _asked("docstrings of functions and classes", pairs)


def questions_of_tests(modules: Mapping[str, Module], folder: Path) -> Asked:
    """What tests say of themselves: those of `test_x.py` are about the module x."""
    names = {name: number for number, name in enumerate(modules)}
    found: dict[tuple[str, int], str] = {}
    for path in sorted(folder.rglob("test_*.py")):
        parts = [part.removeprefix("test_") for part in path.relative_to(folder).with_suffix("").parts]
        number = names.get(".".join(parts), names.get(parts[0]) if len(parts) > 1 else None)
        if number is not None:
            for text in _documented(path):
                found.setdefault((plain(text), number), text)
    modules_with = Counter(words for words, _ in found)
    pairs = [(text, number) for (words, number), text in found.items() if modules_with[words] == 1]
    return _asked("docstrings of tests", pairs)


def blended(own: Vectors, edges: Sequence[tuple[int, int]], alpha: float) -> Vectors:
    """(n, d), what a graph of these agents settles at, as a worker keeps it.

    Args:
        own: (n, d).
        edges: (who hears, who is heard), all of weight 1.
        alpha: of the graph.
    """
    import torch

    graph = ContextGraph(own.shape[1], alpha, torch.device("cpu"))
    stamps = np.ones(len(own), np.uint64)
    graph.put(np.arange(len(own)), torch.from_numpy(own), stamps, stamps)
    if edges:
        targets, sources = np.array(edges).T
        stamps = np.ones(len(edges), np.uint64)
        graph.link(sources, targets, stamps.astype(np.float32), stamps, stamps)
    settle(graph, EPSILON)
    found: Vectors = graph.table.blended[: len(own)].numpy()
    return found


def ranks(queries: Vectors, vectors: Vectors, right: Numbers) -> Numbers:
    """(n,) at which place the right agent comes, from 1 on; of equals it is the last."""
    scores = queries @ vectors.T
    found: Numbers = (scores >= scores[np.arange(len(right)), right][:, None]).sum(1)
    return found


def edges_of(modules: Mapping[str, Module], heard: str) -> list[tuple[int, int]]:
    """(who hears, who is heard) by number, each pair once."""
    numbers = {name: number for number, name in enumerate(modules)}
    pairs = [(number, numbers[one]) for number, each in enumerate(modules.values()) for one in each.imports]
    turned = [(one, number) for number, one in pairs]
    return sorted(set({"imports": pairs, "importers": turned, "both": [*pairs, *turned]}[heard]))


class Intervals:
    """95 % intervals of differences between means over questions.

    Questions of a module are alike, so modules are drawn and not questions (a paired bootstrap of clusters).
    """

    def __init__(self, right: Numbers) -> None:
        _, self._cluster, self._sizes = np.unique(right, return_inverse=True, return_counts=True)
        clusters = len(self._sizes)
        draws = np.random.default_rng(SEED).multinomial(clusters, np.full(clusters, 1 / clusters), RESAMPLES)
        self._draws = draws.astype(np.float64)

    def of(self, differences: NDArray[np.float64]) -> list[float]:
        """The mean of (n,) differences, and the ends of its interval."""
        sums = np.bincount(self._cluster, differences, len(self._sizes))
        means = (self._draws @ sums) / (self._draws @ self._sizes)
        low, high = np.quantile(means, [0.025, 0.975])
        return [round(float(value), 4) for value in (differences.mean(), low, high)]


def figures(places: Numbers) -> dict[str, float]:
    """The share of questions whose module is among the first 1, 5 and 16, and the mean of 1 / place, 0 beyond 16."""
    found = {f"hits@{depth}": float((places <= depth).mean()) for depth in DEPTHS}
    found["mrr"] = float(np.where(places <= DEPTHS[-1], 1 / places, 0).mean())
    return {name: round(value, 4) for name, value in found.items()}


def compared(base: Numbers, places: Numbers, intervals: Intervals) -> dict[str, Any]:
    """Figures, and by how much they are above those of a base."""
    differences = {f"hits@{depth}": intervals.of((places <= depth).astype(float) - (base <= depth)) for depth in DEPTHS}
    return {**figures(places), "more": differences}


def measure(modules: Mapping[str, Module], embed: Embed, asked: Sequence[Asked]) -> dict[str, Any]:
    """All figures of an embedding."""
    own = embed([each.says for each in modules.values()])
    places: dict[Configuration, list[Numbers]] = {}
    queries = [embed(one.texts) for one in asked]
    for heard in HEARD:
        edges = edges_of(modules, heard)
        for alpha in ALPHAS:
            mixed = blended(own, edges, alpha)
            for score, vectors in _scored(mixed).items():
                found = [ranks(texts, vectors, one.right) for texts, one in zip(queries, asked, strict=True)]
                places[Configuration(heard, alpha, score)] = found
    base = [ranks(texts, own, one.right) for texts, one in zip(queries, asked, strict=True)]
    result: dict[str, Any] = {"lengths": _lengths(modules, own, queries[0]), "questions": []}
    for number, one in enumerate(asked):
        intervals = Intervals(one.right)
        result["questions"].append(
            {
                "title": one.title,
                "questions": len(one.texts),
                "modules": len(set(one.right.tolist())),
                "own": figures(base[number]),
                "blended": [
                    {**vars(how), **compared(base[number], found[number], intervals)} for how, found in places.items()
                ],
            }
        )
    result["chosen"] = _chosen(base[0], {how: found[0] for how, found in places.items()}, asked[0].right)
    best = Configuration(**result["chosen"]["configuration"])
    result["parts"] = [
        {"part": part, "questions": int(which.sum()), "modules": len(set(asked[0].right[which].tolist()))}
        | {"own": figures(base[0][which])}
        | compared(base[0][which], places[best][0][which], Intervals(asked[0].right[which]))
        for part, mask in _parts(modules).items()
        if (which := mask[asked[0].right]).any()
    ]
    result["silent"] = [_silent(modules, own, queries[0], asked[0].right, share) for share in SILENT]
    return result


def _lengths(modules: Mapping[str, Module], own: Vectors, queries: Vectors) -> list[dict[str, Any]]:
    """How long blended contexts are, and how many first places go to agents that hear at most one other."""
    edges = edges_of(modules, "both")
    alone = np.bincount([target for target, _ in edges], minlength=len(own)) <= 1
    found = []
    for alpha in ALPHAS:
        mixed = blended(own, edges, alpha)
        lengths = np.quantile(np.linalg.norm(mixed, axis=1), [0, 0.5, 1]).round(3).tolist()
        first = {name: alone[(queries @ vectors.T).argmax(1)].mean() for name, vectors in _scored(mixed).items()}
        found.append(
            {
                "alpha": alpha,
                "lengths": dict(zip(("least", "median", "most"), lengths, strict=True)),
                "hear_at_most_one": {
                    "of_agents": round(float(alone.mean()), 4),
                    "first_by_own": round(float(alone[(queries @ own.T).argmax(1)].mean()), 4),
                    **{f"first_by_{name}": round(float(share), 4) for name, share in first.items()},
                },
            }
        )
    return found


def _scored(mixed: Vectors) -> dict[str, Vectors]:
    """Vectors whose product with a query is each score."""
    return {"dot": mixed, "cosine": straight(mixed)}


def _asked(title: str, pairs: Sequence[tuple[str, int]]) -> Asked:
    return Asked(title, [text for text, _ in pairs], np.array([number for _, number in pairs], np.int64))


def _documented(path: Path) -> Iterator[str]:
    """First sentences in a file; files that are there to be refused by the parser have none."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, Documented) and (text := first_sentence(node)):
            yield text


def _chosen(base: Numbers, places: Mapping[Configuration, Numbers], right: Numbers) -> dict[str, Any]:
    """The configuration that is best by hits@5 for every second module, and how it does for the others."""
    seen = np.isin(right, np.unique(right)[::2])
    best = max(places, key=lambda how: figures(places[how][seen])["hits@5"])
    others = ~seen
    return {
        "configuration": vars(best),
        "questions": int(others.sum()),
        "own": figures(base[others]),
        **compared(base[others], places[best][others], Intervals(right[others])),
    }


def _parts(modules: Mapping[str, Module]) -> dict[str, NDArray[np.bool_]]:
    """Which modules are of which kind."""
    length = np.array([len(each.says) - len(name) - 2 for name, each in modules.items()])
    importers = Counter(one for each in modules.values() for one in each.imports)
    imported_by = np.array([importers[name] for name in modules])
    imports = np.array([len(each.imports) for each in modules.values()])
    private = np.array([any(part.startswith("_") for part in name.split(".")) for name in modules])
    return {
        "no docstring": length == 0,
        "docstring of less than 80 characters": (length > 0) & (length < 80),
        "80 to 399": (length >= 80) & (length < 400),
        "400 or more": length >= 400,
        "imported by none": imported_by == 0,
        "by 1 to 3": (imported_by > 0) & (imported_by < 4),
        "by 4 or more": imported_by >= 4,
        "imports at most 2": imports <= 2,
        "3 to 8": (imports > 2) & (imports < 9),
        "9 or more": imports >= 9,
        "private": private,
        "public": ~private,
    }


def _silent(
    modules: Mapping[str, Module], own: Vectors, queries: Vectors, right: Numbers, share: float
) -> dict[str, Any]:
    """Some agents have said nothing: how often they are found, how often the others are, and how often anybody is."""
    edges = edges_of(modules, "both")
    hits: dict[tuple[float, str], list[NDArray[np.bool_]]] = {}
    of_silent = []
    for draw in range(SILENCES):
        silent = np.random.default_rng(SEED + draw).permutation(len(own)) < max(1, round(share * len(own)))
        of_silent.append(silent[right])
        said = np.where(silent[:, None], np.float32(0), own)
        ways = {(1.0, "dot"): said}
        for alpha in ALPHAS:
            ways |= {(alpha, score): vectors for score, vectors in _scored(blended(said, edges, alpha)).items()}
        for way, vectors in ways.items():
            hits.setdefault(way, []).append(ranks(queries, vectors, right) <= DEPTHS[-1])
    asked = np.concatenate(of_silent)
    means: dict[tuple[float, str], list[float]] = {}
    for way, each in hits.items():
        found = np.concatenate(each)
        means[way] = [round(float(part.mean()), 4) for part in (found[asked], found[~asked], found)]
    names = ("silent", "others", "all")
    return {
        "share": share,
        "own": dict(zip(names, means.pop((1.0, "dot")), strict=True)),
        "blended": [
            {"alpha": alpha, "score": score, **dict(zip(names, each, strict=True))}
            for (alpha, score), each in means.items()
        ],
    }


def main() -> None:
    """Measure, print the tables, write the record and the plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.context_example", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the result record to this file, and the plot beside it")
    options = parser.parse_args()
    os.environ.setdefault(minilm.THREADS_VARIABLE, "1")
    modules = library()
    asked = [questions_of_modules(modules), questions_of_tests(modules, LIBRARY / "test")]
    says = [each.says for each in modules.values()]
    encoder = minilm.Encoder()
    embeddings: dict[str, Embed] = {
        "MiniLM": lambda texts: encoder.embed(texts, 16),
        "bags of words": lambda texts: bags_of_words(texts, says),
    }
    result = record.about("context_example", minilm.NEEDS) | {
        "modules": len(modules),
        "edges": len(edges_of(modules, "imports")),
        "embeddings": {name: measure(modules, embed, asked) for name, embed in embeddings.items()},
    }
    print("\n\n".join(context_table.tables(result)))
    if options.json:
        record.write(result, options.json)
        context_table.draw(result, options.json.with_suffix(".svg"))


if __name__ == "__main__":
    main()
