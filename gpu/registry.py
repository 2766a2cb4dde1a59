"""The registry: which operations a worker has, built in, of models, of the user's modules, of installed packages."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from zlib import crc32

import msgspec

from ..bus.subjects import Subjects
from .operation import Operation
from .ops import assign, echo, embed, evaluate, matrix, packets, tensors
from .residents import Residents, ResidentsSpec

ENTRY_POINTS = "aikoryu.operations"


class Catalogue(msgspec.Struct, frozen=True):
    """What to load; front and engines load the same.

    Attributes:
        embed: names of embedding models.
        model_directory: folder that holds them; empty for the installed packages.
        modules: the user's own, by module name or path of a file.
        residents: where tensors are kept, and how many.
    """

    embed: tuple[str, ...] = ()
    model_directory: str = ""
    modules: tuple[str, ...] = ()
    residents: ResidentsSpec = ResidentsSpec()


def load(catalogue: Catalogue) -> dict[str, Operation]:
    """Every operation by name.

    Raises:
        ImportError: a module of the user's cannot be imported.
        ValueError: two operations have one name, or one has a name that is not made of subject tokens.
    """
    found: dict[str, Operation] = {}
    subjects = Subjects()
    for made in _gather(catalogue):
        subjects.operation(made.name)  # for its check
        if found.setdefault(made.name, made) is not made:
            raise ValueError(f"two operations are called {made.name!r}: rename one")
    return found


def _gather(catalogue: Catalogue) -> list[Operation]:
    operations: list[Operation] = [echo.Echo(), *matrix.operations()]
    residents = Residents(catalogue.residents)
    operations += [*tensors.operations(residents), *evaluate.operations(residents)]
    operations += assign.operations(residents)
    operations += packets.operations(catalogue.residents.directory)
    operations += embed.operations(
        catalogue.embed, Path(catalogue.model_directory) if catalogue.model_directory else None
    )
    for name in catalogue.modules:
        operations += [found for found in vars(_import(name)).values() if isinstance(found, Operation)]
    for point in entry_points(group=ENTRY_POINTS):
        loaded = point.load()
        operations.append(loaded() if isinstance(loaded, type) else loaded)
    return operations


def _import(name: str) -> ModuleType:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).resolve()
    if not path.exists():
        raise ImportError(f"{name}: no such file of operations")
    # Files of one name in different folders are different modules.
    module_name = f"aikoryu_operations_{path.stem}_{crc32(bytes(path)):08x}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module
