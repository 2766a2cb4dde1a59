"""As much of CuPy as compiles and launches, where there is none."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any


class Cupy(ModuleType):
    """Stands in `sys.modules`.

    Args:
        expected: what the source has to have in it.
        error: what compiling ends with.

    Attributes:
        launched: kernel, blocks, threads of a block, arguments.
    """

    def __init__(self, expected: str, error: Exception | None = None) -> None:
        super().__init__("cupy")
        self.launched: list[tuple[Any, ...]] = []
        self._expected = expected
        self._error = error

    def RawModule(self, code: str, options: tuple[str, ...]) -> Cupy:  # noqa: N802 - its name there
        assert self._expected in code
        return self

    def get_function(self, name: str) -> Callable[..., None]:
        if self._error is not None:
            raise self._error
        return lambda blocks, threads, arguments: self.launched.append((name, blocks, threads, arguments))
