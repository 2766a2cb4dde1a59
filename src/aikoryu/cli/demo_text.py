"""Real text for the demo: sentences from the docstrings of the standard library."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_SENTENCE = re.compile(r"[A-Z][^>|=_]{18,118}[.!?]")


def sentences(count: int) -> list[str]:
    """The first `count` different sentences, of 20 to 120 characters; fewer if there are no more."""
    found: dict[str, None] = {}
    for text in _docstrings(Path(sysconfig.get_path("stdlib"))):
        for paragraph in text.split("\n\n"):
            for sentence in _END.split(" ".join(paragraph.split())):
                if _SENTENCE.fullmatch(sentence):
                    found[sentence] = None
        if len(found) >= count:
            break
    return list(found)[:count]


def _docstrings(folder: Path) -> Iterator[str]:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                yield text
