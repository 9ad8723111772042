"""Which architectures there are: those of lkm-calc, registered ones, those of installed packages.

An installed package offers its architectures as entry points of the group :data:`GROUP`. They are
listed from the packages' metadata, and a package is imported when one of its names is asked for,
not before.
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
"""Group of entry points under which a package offers architectures, ``name = module:class``."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*")
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")

Class = TypeVar("Class", bound=type[EnergyModel])


class ArchitectureError(ValueError):
    """An architecture cannot be registered, imported or rebuilt; the message says why."""


class Architectures(Mapping[str, type[EnergyModel]]):
    """Classes of models by name: those that were registered, and those of installed packages."""

    def __init__(self) -> None:
        self._registered: dict[str, type[EnergyModel]] = {}

    def __getitem__(self, name: str) -> type[EnergyModel]:
        """Return a class, for which the package that offers it is imported if need be.

        Raises:
            ArchitectureError: The package cannot be imported, offers something else, or there are
                two of them.
            KeyError: There is no such architecture.
        """
        if name not in self._registered:
            self.add(_imported(name))
        return self._registered[name]

    def __contains__(self, name: object) -> bool:
        """Tell whether there is an architecture, without importing any."""
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
        """Those whose classes are at hand."""
        return dict(self._registered)

    def add(self, cls: type[EnergyModel]) -> None:
        """Register a class, see :func:`register_model`."""
        check_class(cls)
        known = self._registered.get(cls.name)
        # A module that is reloaded and a notebook's cell that is run again define it anew.
        if known is not None and _place(known) != _place(cls):
            raise ArchitectureError(
                f"{_place(cls)} has the name {cls.name!r}, which {_place(known)} has already. Give "
                f"it a name of its own: name = ... in the class."
            )
        self._registered[cls.name] = cls


MODELS = Architectures()


def register_model(cls: Class) -> Class:
    """Make an architecture known by its ``name``, as a decorator of its class.

    It can then be built, trained, saved and loaded like those of lkm-calc, wherever the module of
    the class is imported. An installed package offers it as an entry point of the group
    ``lkm_calc.models`` as well, so that nobody need import it.

    Args:
        cls: An :class:`lkm_calc.EnergyModel` with a ``name`` of its own. Every argument has a
            default and is passed up, under its own name, in ``hypers``: numbers, texts, booleans,
            None, or lists and dictionaries of them.

    Returns:
        The class as it is.

    Raises:
        ArchitectureError: It is abstract or no model, its name is no good or another one's, or
            its arguments cannot be written to a file.
    """
    MODELS.add(cls)
    return cls


def check_class(cls: object) -> None:
    """Raise an ArchitectureError if something is not a class that can be registered."""
    if not (isinstance(cls, type) and issubclass(cls, EnergyModel)):
        raise ArchitectureError(f"{cls!r} is not a class of models; derive it from EnergyModel.")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise ArchitectureError(f"{_place(cls)} is abstract: it does not define {missing}.")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArchitectureError(
            f"{_place(cls)} has the name {name!r}. Set name = ... in the class, in lower case "
            "letters, digits and . _ + - and with a letter or a digit first."
        )
    for parameter in inspect.signature(cls).parameters.values():
        problem = _problem(parameter)
        if problem:
            raise ArchitectureError(f"{_place(cls)} {problem}.")


def _problem(parameter: inspect.Parameter) -> str:
    """Describe why a file could not tell this argument of a class, or return an empty text."""
    name = parameter.name
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        return f"takes {parameter}; name its arguments one by one"
    if parameter.default is parameter.empty:
        return f"has no default for {name}; give it one, so that the name alone builds a model"
    if not _is_plain(parameter.default):
        return f"has {name}={parameter.default!r}, which is no JSON value"
    return ""


def check_hypers(model: EnergyModel, given: Mapping[str, Any] | None = None) -> None:
    """Raise an ArchitectureError if a model's hypers would not rebuild it from a file.

    Args:
        model: The model.
        given: The arguments that it was built with, as far as they are known.
    """
    place, known = _place(type(model)), [*inspect.signature(type(model)).parameters]
    if {*known} != {*model.hypers}:
        raise ArchitectureError(
            f"{place} takes {', '.join(known) or 'no arguments'} but passes up the hypers "
            f"{', '.join(model.hypers) or 'none'}. Pass every argument under its own name."
        )
    for name, value in model.hypers.items():
        if not _is_plain(value):
            raise ArchitectureError(
                f"{place} has the hyper {name}={value!r}, which is no JSON value. Take numbers, "
                "texts, booleans, None, lists, or dictionaries with texts as keys."
            )
    for name, value in (given or {}).items():
        if model.hypers[name] != value:
            raise ArchitectureError(
                f"{place} was given {name}={value!r} and passes up {model.hypers[name]!r}. Pass up "
                "the arguments as they came."
            )


def is_registered(model: EnergyModel) -> bool:
    """Tell whether a file of a model would be loaded as the same class."""
    return model.name in MODELS and _place(MODELS[model.name]) == _place(type(model))


def origin_of(cls: type[EnergyModel]) -> dict[str, str]:
    """Return the module, package and version that an architecture is of, as far as is known.

    That is what a file tells to those who lack it; nothing for the architectures of lkm-calc.
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
    """Return what to do to have an architecture that a file names.

    Args:
        name: Of the architecture.
        origin: What the file says of it, which may be anything.
    """
    said = origin if isinstance(origin, dict) else {}
    package, module = (str(said.get(key, "")) for key in ("package", "module"))
    known = f"Installed are {', '.join(MODELS)}."
    if _PACKAGE.fullmatch(package):
        return (
            f"The file says that it is of the package {package}: if you trust that package, "
            f"pip install {package}. {known}"
        )
    if all(part.isidentifier() for part in module.split(".")):
        return (
            f"The file says that it is of the module {module}: import that module first, on the "
            f"command line with --import. {known}"
        )
    return f"Install the package or import the module that it is of. {known}"


def _offers() -> list[EntryPoint]:
    """Return what installed packages offer."""
    return list(entry_points(group=GROUP))


def _imported(name: str) -> type[EnergyModel]:
    """Import the class that an installed package offers under a name."""
    offers = {point.value: point for point in _offers() if point.name == name}
    if not offers:
        raise KeyError(name)
    if len(offers) > 1:
        packages = " and ".join(sorted(_package(point) for point in offers.values()))
        raise ArchitectureError(
            f"The packages {packages} both offer an architecture {name!r}. Uninstall one of them."
        )
    (point,) = offers.values()
    try:
        cls: type[EnergyModel] = point.load()
    except Exception as error:  # it may be anything: the code is not ours
        raise ArchitectureError(
            f"The package {_package(point)} offers the architecture {name!r}, but {point.value} "
            f"cannot be imported ({type(error).__name__}: {error}). Update or reinstall it."
        ) from error
    check_class(cls)
    if cls.name != name:
        raise ArchitectureError(
            f"The package {_package(point)} offers {point.value} as {name!r}, but its name is "
            f"{cls.name!r}. The two must be the same."
        )
    return cls


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_plain(value: Any) -> bool:
    """Tell whether JSON brings a value back as it is."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError, RecursionError):
        return False
