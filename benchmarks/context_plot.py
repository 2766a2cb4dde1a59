"""The plot of `context_example`: hits over α, by dot product and by cosine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def drawn(result: Mapping[str, Any]) -> str:
    """SVG."""
    return "<svg/>"
