"""Units in files and their conversion factors to eV and Å."""

import unicodedata
from collections.abc import Mapping

from lkm_calc.units import BOHR, GPA, HARTREE, KCAL_PER_MOL, KJ_PER_MOL, RYDBERG

from .frames import DataError

ENERGY_UNITS: Mapping[str, float] = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": HARTREE,
    "Ry": RYDBERG,
    "kcal/mol": KCAL_PER_MOL,
    "kJ/mol": KJ_PER_MOL,
}
"""Energies in eV."""
LENGTH_UNITS: Mapping[str, float] = {"Å": 1.0, "Angstrom": 1.0, "Bohr": BOHR, "nm": 10.0}
"""Lengths in Å."""
FORCE_UNITS: Mapping[str, float] = {
    f"{energy}/{length}": e / l
    for energy, e in ENERGY_UNITS.items()
    for length, l in LENGTH_UNITS.items()
}
"""Forces in eV/Å."""
STRESS_UNITS: Mapping[str, float] = {
    f"{energy}/{length}^3": e / l**3
    for energy, e in ENERGY_UNITS.items()
    for length, l in LENGTH_UNITS.items()
} | {"GPa": GPA}
"""Stresses in eV/Å³."""


def factor(unit: str, known: Mapping[str, float], name: str) -> float:
    """Return the conversion factor of a unit, or raise a DataError that lists the known units.

    Args:
        unit: The unit; both Unicode characters for Å are accepted.
        known: Factors by unit.
        name: Name of the quantity or option, for the message.
    """
    # The letter Å and the ångström sign are different characters.
    plain = unicodedata.normalize("NFC", unit)
    if plain not in known:
        raise DataError(f"{name} is {unit!r}; choose one of {', '.join(known)}.")
    return known[plain]
