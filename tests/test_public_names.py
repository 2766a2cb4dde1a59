"""`import aikoryu`: every public name is there, and costs nothing before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import aikoryu


@pytest.mark.parametrize("name", aikoryu.__all__)
def test_public_name_is_there_and_stays(name: str) -> None:
    assert getattr(aikoryu, name) is getattr(aikoryu, name)
    assert name in dir(aikoryu)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'aikoryu' has no attribute 'conect'"):
        _ = aikoryu.conect  # type: ignore[attr-defined]


@pytest.mark.parametrize(("code", "loaded"), [("aikoryu", False), ("aikoryu; aikoryu.connect", True)])
def test_libraries_are_loaded_when_they_are_needed(code: str, loaded: bool) -> None:
    command = [sys.executable, "-c", f"import sys, {code}; print('nats' in sys.modules, 'numpy' in sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(loaded)] * 2


def test_star_import_gives_every_name() -> None:
    names: dict[str, object] = {}
    exec("from aikoryu import *", names)
    assert set(aikoryu.__all__) <= names.keys()
