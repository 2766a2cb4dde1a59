"""The build: folders, mapping and links agree, a wheel holds everything, and the light parts stay light."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDERS = ("agents", "bus", "config", "gpu", "netio")
HEAVY = {"cupy", "prometheus_client", "torch"}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def files() -> Iterator[tuple[str, Path]]:
    """Every file of the installed package: its name in a wheel and its place here."""
    for folder, inside in [("src/aikoryu", "aikoryu"), *((name, f"aikoryu/{name}") for name in FOLDERS)]:
        for directory, subdirectories, names in os.walk(ROOT / folder):  # follows no links
            subdirectories[:] = [name for name in subdirectories if name != "__pycache__"]
            for path in (Path(directory, name) for name in names if not name.startswith(".")):
                yield f"{inside}/{path.relative_to(ROOT / folder)}", path


def module(name_in_wheel: str) -> str:
    return name_in_wheel.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_packages_and_mapping_match_the_folders(pyproject: dict[str, Any]) -> None:
    found = {module(name): str(path.parent.relative_to(ROOT)) for name, path in files() if path.name == "__init__.py"}
    setuptools = pyproject["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(found)
    assert setuptools["package-dir"] == found


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for name, path in files() if name.endswith(".py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_link_is_relative_and_leads_to_the_folder(folder: str) -> None:
    link = ROOT / "src/aikoryu" / folder
    assert os.readlink(link) == f"../../{folder}"
    assert link.resolve() == ROOT / folder


def build(kind: str, tree: Path) -> Path:
    """Build what `pip install` would, without pip, a network or a build environment."""
    code = f"import setuptools.build_meta as b; print(b.build_{kind}('out'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tree / "out" / done.stdout.splitlines()[-1]


def names_in(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_wheel_and_sdist_hold_every_file(tmp_path: Path) -> None:
    # Built from a copy: setuptools would leave a build/ here, and take in whatever an older one holds.
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("src", *FOLDERS):
        shutil.copytree(
            ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )

    wheel = build("wheel", tree)
    sdist = build("sdist", tree)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    (unpacked,) = (tmp_path / "sdist").iterdir()

    expected = {name for name, _ in files()}
    assert {
        "aikoryu/py.typed",
        "aikoryu/__init__.py",
        "aikoryu/bus/frames.py",
        "aikoryu/gpu/ops/__init__.py",
    } <= expected
    assert names_in(wheel) == expected
    assert names_in(build("wheel", unpacked)) == expected


def loaded(*modules: str) -> set[str]:
    """What of the heavy libraries a fresh interpreter has loaded after importing the modules."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stdout.split())


def modules(pattern: str) -> list[str]:
    return [module(name) for name, _ in files() if re.fullmatch(pattern, name) and not name.endswith("/__main__.py")]


def test_the_sdk_loads_nothing_heavy() -> None:
    sdk = modules(r"aikoryu/((agents|bus|config|netio)/.*)?\w+\.py")
    assert {"aikoryu", "aikoryu.agents", "aikoryu.bus", "aikoryu.bus.frames"} <= set(sdk)
    assert loaded(*sdk) == set()


def test_the_worker_front_loads_no_gpu_library() -> None:
    kernels = "aikoryu.gpu.group_kernels"  # in Triton's language: loaded by the first search on a GPU
    front = [name for name in modules(r"aikoryu/gpu/(ops/)?\w+\.py") if name != kernels]
    assert "aikoryu.gpu.operation" in front
    assert loaded(*front) <= {"prometheus_client"}


def test_a_heavy_import_would_be_seen() -> None:
    assert loaded("aikoryu", "prometheus_client") == {"prometheus_client"}


def requirements(lines: list[str]) -> dict[NormalizedName, Requirement]:
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def test_extras_are_as_decided(pyproject: dict[str, Any]) -> None:
    text = (ROOT / "docs/decisions/001-which-package-in-which-extra.md").read_text()
    decided = re.findall(r"^\| `([\w-]+)` \| `?(\w+)`? \|", text, re.MULTILINE)
    project = pyproject["project"]
    extras = {"none": requirements(project["dependencies"])}
    extras |= {extra: requirements(lines) for extra, lines in project["optional-dependencies"].items()}
    for extra, there in extras.items():
        named = {name for name, of in decided if of == extra}
        if extra in ("dev", "bench"):  # of these only what needs a reason is in the table
            assert named <= there.keys(), extra
        else:
            assert named == there.keys(), extra


def test_constraints_pin_what_is_required(pyproject: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in pinned}
    assert not [pin for pin in pins if pin.startswith(("cupy", "cuda", "nvidia")) and pin != "nvidia-ml-py"]
    assert "+" not in pins[canonicalize_name("torch")]
    project = pyproject["project"]
    for extra, required in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for name, requirement in requirements(required).items():
            if name != "aikoryu" and not extra.startswith("cuda"):
                assert requirement.specifier.contains(pins[name]), requirement
