"""Guesses of units from measured quantities."""

from itertools import product
from typing import NamedTuple

import numpy as np

from lkm_calc.units import BOHR, HARTREE, KCAL_PER_MOL

from ...data import ENERGY_UNITS, FORCE_UNITS, LENGTH_UNITS

# Units that occur in files.
_ENERGY_UNITS = {n: ENERGY_UNITS[n] for n in ("eV", "kcal/mol", "kJ/mol", "Hartree", "meV")}
_FORCE_UNITS = {
    name: FORCE_UNITS[name]
    for name in (
        *("eV/Å", "kcal/mol/Å", "kJ/mol/Å", "kJ/mol/nm"),
        *("Hartree/Bohr", "Hartree/Å", "eV/Bohr", "meV/Å"),
    )
}
_LENGTH_UNITS = {name: LENGTH_UNITS[name] for name in ("Å", "Bohr", "nm")}
_CONVERSIONS = {
    "": (1.0, 1.0),
    " converted as if they were kcal/mol": (KCAL_PER_MOL, KCAL_PER_MOL),
    " converted as if they were Hartree": (HARTREE, HARTREE / BOHR),
}


class Evidence(NamedTuple):
    """A quantity with a known typical value in correct units, and its dependence on the units."""

    measured: float
    expected: float
    tolerance: float
    """Standard deviation of its logarithm."""
    powers: tuple[int, int, int]
    """Exponents of the units of energy, force and length in the expected value."""


_RARE = {"meV": 1.0, "meV/Å": 1.0, "Hartree/Å": 0.5, "eV/Bohr": 0.5, "kJ/mol/nm": 0.3}
"""Penalty for rare units, in squared standard deviations."""
_CONVERTED = 1.0
"""Penalty for a conversion from a wrong unit."""
_AMBIGUOUS = 1.0
"""Difference of two misfits below which both guesses are reported."""


def guess_units(evidence: list[Evidence]) -> list[tuple[str, str, str]]:
    """Return the units of energies, forces and positions that fit the evidence best.

    Conversions by a reader from a wrong unit are considered as well. Units without evidence are
    assumed to be right. A second guess that fits nearly as well is also returned.
    """
    misfits: dict[tuple[str, str, str], float] = {}
    choices = product(
        _ENERGY_UNITS.items(), _FORCE_UNITS.items(), _LENGTH_UNITS.items(), _CONVERSIONS.items()
    )
    for (energy, e), (force, f), (length, r), (conversion, (by_e, by_f)) in choices:
        sizes = (e / by_e, f / by_f, r)
        misfit = sum(_misfit(item, sizes) for item in evidence)
        # Prefer guesses with fewer wrong units.
        misfit += 0.2 * sum(abs(np.log(size)) > 0.01 for size in sizes)
        misfit += _CONVERTED * bool(conversion) + _RARE.get(energy, 0.0) + _RARE.get(force, 0.0)
        name = (_with(energy, sizes[0], conversion), _with(force, sizes[1], conversion), length)
        misfits[name] = min(misfit, misfits.get(name, np.inf))
    best, second = sorted(misfits, key=lambda name: misfits[name])[:2]
    return [best, second] if misfits[second] - misfits[best] < _AMBIGUOUS else [best]


def _misfit(item: Evidence, sizes: tuple[float, float, float]) -> float:
    """Return the squared deviation of a quantity for a guess, in standard deviations."""
    scale = np.prod([size**power for size, power in zip(sizes, item.powers, strict=True)])
    return float((np.log(item.measured / (item.expected * scale)) / item.tolerance) ** 2)


def _with(unit: str, size: float, conversion: str) -> str:
    """Return the name of a unit and its wrong conversion, if any, or eV or eV/Å if it is right."""
    if abs(np.log(size)) < 0.01:
        return "eV/Å" if "/Å" in unit or "Bohr" in unit else "eV"
    return unit + conversion
