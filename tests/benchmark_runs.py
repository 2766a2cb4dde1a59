"""Benchmarks as their tests run them: as processes, from the source tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a module of the source tree; it may fail."""
    return subprocess.run(
        (sys.executable, "-m", *command), cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def sample(**figures: float) -> dict[str, Any]:
    """A sample without faults."""
    return {"mismatches": 0, "errors": 0, "unanswered": 0, **figures}
