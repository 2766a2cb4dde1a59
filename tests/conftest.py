"""What no test may leave to the next."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import structlog

LONGEST = {"test_chaos.py", "test_benchmarks.py", "test_benchmarks_packets.py", "test_neighbours.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest begin first, one after the other: at the end the other processes would wait for them."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_configure() -> None:
    """A test that shares its cores with others takes the time that they leave it: Hypothesis must not judge by that."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        from hypothesis import settings

        settings.register_profile("shared", settings(), deadline=None)
        settings.load_profile("shared")


@pytest.fixture(autouse=True)
def _logging_restored() -> Iterator[None]:
    """Commands, and tests of logs, configure the logs of this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
