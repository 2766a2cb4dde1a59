"""Tables in plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(lines: Iterable[Sequence[str]], align: str) -> str:
    """Columns as wide as their widest cell, two spaces apart.

    Args:
        lines: the cells of each line, the heading among them if there is one.
        align: a character a column, `<` to the left or `>` to the right.
    """
    lines = list(lines)
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, align, widths, strict=True)).rstrip()
        for line in lines
    )
