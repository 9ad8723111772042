"""ASE calculators by name."""

import importlib
from collections.abc import Callable
from typing import Any

from ase.calculators.calculator import BaseCalculator

from lkm_calc.files import expanded
from lkm_calc.models import module_of

from ..config import ConfigError

TBLITE = {"gfn2-xtb": "GFN2-xTB", "gfn1-xtb": "GFN1-xTB"}
"""Methods of tblite (Bannwarth et al. 2019, doi:10.1021/acs.jctc.8b01176; Grimme et al. 2017,
doi:10.1021/acs.jctc.7b00118) by our name."""


def make_calculator(name: str) -> BaseCalculator:
    """Return the ASE calculator of a name.

    Args:
        name: ``"gfn2-xtb"`` or ``"gfn1-xtb"``, which need tblite, or ``"MODULE:NAME"`` or
            ``"FILE.py:NAME"``: a function or class that returns an ASE calculator when called
            without arguments.

    Raises:
        ConfigError: There is no such calculator, its package is not installed, or it cannot be
            created.
    """
    make = _factory(name)
    try:
        calculator = make()
    except Exception as error:  # code of the user or of another package: anything can be raised
        raise ConfigError(
            f"The calculator {name!r} cannot be created ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(calculator, BaseCalculator):
        raise ConfigError(
            f"{name!r} returns a {type(calculator).__name__}, not an ASE calculator. Name a "
            "function or class that returns one when called without arguments."
        )
    if missing := {"energy", "forces"}.difference(calculator.implemented_properties):
        raise ConfigError(
            f"The calculator {name!r} does not compute {' and '.join(sorted(missing))}, which "
            "pretraining needs."
        )
    return calculator


def _factory(name: str) -> Callable[[], Any]:
    """Return what creates the calculator, with its package imported."""
    if name in TBLITE:
        try:
            tblite = importlib.import_module("tblite.ase")  # optional
        except ImportError as error:
            raise ConfigError(
                f"The calculator {name!r} needs tblite: pip install lkm-calc[label]."
            ) from error
        return lambda: tblite.TBLite(method=TBLITE[name], verbosity=0)
    source, _, attribute = name.rpartition(":")
    if not (source and attribute):
        raise ConfigError(
            f"There is no calculator {name!r}. Use {', '.join(TBLITE)}, or MODULE:NAME or "
            "FILE.py:NAME of a function or class that returns an ASE calculator."
        )
    try:
        module = module_of(expanded(source)) if source.endswith(".py") else source
        make = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # code of the user or of another package: anything can be raised
        raise ConfigError(
            f"The calculator {name!r} cannot be imported ({type(error).__name__}: {error})."
        ) from error
    if not callable(make):
        raise ConfigError(f"{name!r} is not a function or class.")
    found: Callable[[], Any] = make
    return found
