"""Registry of architectures: those of lkm-calc, custom ones, and those of installed packages.

An installed package provides architectures as entry points of the group :data:`GROUP`. They are
listed from the metadata of the packages; a package is only imported when one of its architectures
is used.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from pathlib import Path
from typing import Any, TypeVar

from .energy import EnergyModel

GROUP = "lkm_calc.models"
"""Group of entry points for architectures, ``name = module:class``."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*")
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")

Class = TypeVar("Class", bound=type[EnergyModel])


class ArchitectureError(ValueError):
    """An architecture cannot be registered, imported or rebuilt; the message says why."""


class Architectures(Mapping[str, type[EnergyModel]]):
    """Model classes by name: registered classes and those of installed packages."""

    def __init__(self) -> None:
        self._registered: dict[str, type[EnergyModel]] = {}

    def __getitem__(self, name: str) -> type[EnergyModel]:
        """Return a class, importing the package that provides it if necessary.

        Raises:
            ArchitectureError: The package cannot be imported, the entry point is not a valid model
                class, or several packages provide the name.
            KeyError: There is no such architecture.
        """
        if name not in self._registered:
            self.add(_imported(name))
        return self._registered[name]

    def __contains__(self, name: object) -> bool:
        """Return whether an architecture exists, without importing any."""
        return name in self._registered or any(point.name == name for point in _offers())

    def __iter__(self) -> Iterator[str]:
        """List the names, without importing any."""
        return iter([*dict.fromkeys([*self._registered, *(point.name for point in _offers())])])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<architectures {', '.join(self)}>"

    @property
    def registered(self) -> Mapping[str, type[EnergyModel]]:
        """The architectures that have been registered or imported."""
        return dict(self._registered)

    def add(self, cls: type[EnergyModel]) -> None:
        """Register a class, see :func:`register_model`."""
        check_class(cls)
        known = self._registered.get(cls.name)
        # Reloading a module or rerunning a notebook cell defines the same class again.
        if known is not None and _place(known) != _place(cls):
            raise ArchitectureError(
                f"{_place(cls)} has the name {cls.name!r}, which is already used by "
                f"{_place(known)}. Set a different name = ... in the class."
            )
        self._registered[cls.name] = cls


MODELS = Architectures()


def register_model(cls: Class) -> Class:
    """Register an architecture under its ``name``; a class decorator.

    It can then be built, trained, saved and loaded like those of lkm-calc wherever the module of
    the class has been imported. A package should also provide it as an entry point of the group
    ``lkm_calc.models``, so that users do not have to import the module.

    Args:
        cls: A subclass of :class:`lkm_calc.EnergyModel` with a unique ``name``. Every argument must
            have a default and be passed to ``EnergyModel.__init__`` under the same name in
            ``hypers``. Values are numbers, strings, booleans, None, or lists and dictionaries of
            these.

    Returns:
        The unchanged class.

    Raises:
        ArchitectureError: The class is abstract or not a model, its name is invalid or already
            used, or its arguments cannot be written to a file.
    """
    MODELS.add(cls)
    return cls


def check_class(cls: object) -> None:
    """Raise an ArchitectureError if an object is not a class that can be registered."""
    if not (isinstance(cls, type) and issubclass(cls, EnergyModel)):
        raise ArchitectureError(f"{cls!r} is not a model class; derive it from EnergyModel.")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise ArchitectureError(f"{_place(cls)} is abstract: it does not define {missing}.")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArchitectureError(
            f"{_place(cls)} has the invalid name {name!r}. Set name = ... in the class; use lower "
            "case letters, digits and . _ + - and start with a letter or a digit."
        )
    for parameter in inspect.signature(cls).parameters.values():
        problem = _problem(parameter)
        if problem:
            raise ArchitectureError(f"{_place(cls)} {problem}.")


def _problem(parameter: inspect.Parameter) -> str:
    """Return why an argument of a class cannot be stored in a file, or an empty string."""
    name = parameter.name
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        return f"has the argument {parameter}; declare each argument by name"
    if parameter.default is parameter.empty:
        return f"has no default for {name}; add one, so that the model can be built by name alone"
    if not _is_plain(parameter.default):
        return f"has {name}={parameter.default!r}, which is not a JSON value"
    return ""


def check_hypers(model: EnergyModel, given: Mapping[str, Any] | None = None) -> None:
    """Raise an ArchitectureError if a model could not be rebuilt from its hypers.

    Args:
        model: The model.
        given: The arguments with which it was built, if known.
    """
    place, known = _place(type(model)), [*inspect.signature(type(model)).parameters]
    if {*known} != {*model.hypers}:
        raise ArchitectureError(
            f"{place} has the arguments {', '.join(known) or 'none'} but the hypers "
            f"{', '.join(model.hypers) or 'none'}. Pass every argument to EnergyModel.__init__ in "
            "hypers, under the same name."
        )
    for name, value in model.hypers.items():
        if not _is_plain(value):
            raise ArchitectureError(
                f"{place} has the hyper {name}={value!r}, which is not a JSON value. Use numbers, "
                "strings, booleans, None, lists, or dictionaries with strings as keys."
            )
    for name, value in (given or {}).items():
        if model.hypers[name] != value:
            raise ArchitectureError(
                f"{place} was built with {name}={value!r} but has {model.hypers[name]!r} in hypers."
                " Pass the arguments to EnergyModel.__init__ unchanged."
            )


def is_registered(model: EnergyModel) -> bool:
    """Return whether a file of a model would be loaded as the same class."""
    return model.name in MODELS and _place(MODELS[model.name]) == _place(type(model))


def origin_of(cls: type[EnergyModel]) -> dict[str, str]:
    """Return the module, package and version of an architecture, as far as they are known.

    They are stored in model files for users who do not have the architecture; empty for those of
    lkm-calc.
    """
    top = cls.__module__.partition(".")[0]
    if top == __name__.partition(".")[0]:
        return {}
    module = cls.__module__
    if module == "__main__":
        module = Path(inspect.getsourcefile(cls) or "").stem
    package = next((_package(p) for p in _offers() if p.name == cls.name), "")
    package = package or next(iter(packages_distributions().get(top, [])), "")
    found = {"module": module, "package": package, "version": package and version(package)}
    return {key: text for key, text in found.items() if text}


def missing_text(name: str, origin: Any) -> str:
    """Return instructions for making the architecture of a model file available.

    Args:
        name: Name of the architecture.
        origin: Origin stored in the file; any value, as it is not validated.
    """
    said = origin if isinstance(origin, dict) else {}
    package, module = (str(said.get(key, "")) for key in ("package", "module"))
    known = f"Available architectures: {', '.join(MODELS)}."
    if _PACKAGE.fullmatch(package):
        return (
            f"According to the file, the package {package} provides it: if you trust that package, "
            f"run pip install {package}. {known}"
        )
    if all(part.isidentifier() for part in module.split(".")):
        return (
            f"According to the file, the module {module} defines it: import that module first, on "
            f"the command line with --import. {known}"
        )
    return f"Install the package or import the module that defines it. {known}"


def _offers() -> list[EntryPoint]:
    """Return the entry points of installed packages."""
    return list(entry_points(group=GROUP))


def _imported(name: str) -> type[EnergyModel]:
    """Import the class that an installed package provides under a name."""
    offers = {point.value: point for point in _offers() if point.name == name}
    if not offers:
        raise KeyError(name)
    if len(offers) > 1:
        packages = " and ".join(sorted(_package(point) for point in offers.values()))
        raise ArchitectureError(
            f"The packages {packages} both provide an architecture {name!r}. Uninstall one of them."
        )
    (point,) = offers.values()
    try:
        cls: type[EnergyModel] = point.load()
    except Exception as error:  # third-party code may raise anything
        raise ArchitectureError(
            f"The package {_package(point)} provides the architecture {name!r}, but {point.value} "
            f"cannot be imported ({type(error).__name__}: {error}). Update or reinstall it."
        ) from error
    check_class(cls)
    if cls.name != name:
        raise ArchitectureError(
            f"The package {_package(point)} provides {point.value} as {name!r}, but the name of "
            f"the class is {cls.name!r}. The two must be the same."
        )
    return cls


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_plain(value: Any) -> bool:
    """Return whether a value survives a round trip through JSON."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError, RecursionError):
        return False
