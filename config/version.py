"""The version of the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("aikoryu")
except PackageNotFoundError:  # run from the source tree with PYTHONPATH=src
    VERSION = "0.0.0"
