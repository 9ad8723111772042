"""Import modules with custom architectures, for the command line."""

import importlib
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from .registry import MODELS, ArchitectureError


def import_architectures(sources: Iterable[str]) -> None:
    """Import modules that register architectures. This executes their code.

    The folder of a file is appended to ``sys.path``, so that other processes that receive a model
    find its module under the same name.

    Args:
        sources: Paths of Python files, or names of modules.

    Raises:
        ArchitectureError: A module cannot be imported, or does not register an architecture.
    """
    for source in sources:
        name = module_of(Path(source).expanduser()) if source.endswith(".py") else source
        try:
            importlib.import_module(name)
        except Exception as error:  # user code may raise anything
            raise ArchitectureError(
                f"{source} cannot be imported ({type(error).__name__}: {error})."
            ) from error
        top = name.partition(".")[0]
        if not any(cls.__module__.partition(".")[0] == top for cls in MODELS.registered.values()):
            raise ArchitectureError(
                f"{source} does not register an architecture. Put @register_model above its class."
            )


def module_of(path: Path) -> str:
    """Make a file importable and return the name of its module."""
    if not path.is_file():
        raise ArchitectureError(f"There is no file {path} to import.")
    path, name = path.resolve(), path.stem
    if not name.isidentifier():
        raise ArchitectureError(
            f"{path.name} is not a valid module name. Rename the file, for example to model.py."
        )
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()
    spec = find_spec(name)
    found = spec.origin if spec is not None else None
    if found is None or not Path(found).exists() or not path.samefile(found):
        raise ArchitectureError(
            f"{path.name} has the same name as another module, {found}. Rename the file."
        )
    return name
