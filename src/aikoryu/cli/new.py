"""`aikoryu new`: a folder with an agent that runs, and a test of it that passes."""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from importlib.resources import files
from pathlib import Path
from string import Template

from .arguments import Commands, add_command
from .failure import Failed

_TEMPLATES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "$module.py": "agent.py.txt",
    "test_$module.py": "test_agent.py.txt",
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_TAKEN = sys.stdlib_module_names | {"aikoryu", "pytest", "test"}

_DESCRIPTION = """\
Make a folder with an agent that runs, a test of it that needs no server, and
what `pip` needs to install it. The folder's name is the agent's.

  aikoryu new my-agent
  cd my-agent && pytest && python my_agent.py"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "new", "make a folder with an agent and a test", _DESCRIPTION)
    parser.add_argument("folder", type=Path, metavar="NAME", help="the agent's name, or a path that ends in it")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the files, and say what to do with them."""
    folder: Path = options.folder
    name = folder.resolve().name
    module = name.lower().replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(module):
        raise Failed(f"{name!r} is no name of an agent: begin with a letter, then letters, digits, '-' and '_'")
    if module in _TAKEN:
        raise Failed(f"{name!r} would hide Python's module {module!r}: choose another name")
    try:
        _write(folder, {"name": name, "module": module})
    except FileExistsError:
        raise Failed(f"{folder} is there already: choose another name, or remove it") from None
    except OSError as error:
        raise Failed(f"{folder} cannot be written: {error.strerror}") from None
    print(f"{folder}: an agent in {module}.py, and a test of it; README.md says how to run both")
    return 0


def _write(folder: Path, names: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    templates = files(__package__) / "templates"
    for target, template in _TEMPLATES.items():
        text = Template((templates / template).read_text("utf-8")).substitute(names)
        (folder / Template(target).substitute(names)).write_text(text, "utf-8")
