"""Conversion factors to the units used everywhere inside the project: eV and Å.

The values are those of ``ase.units`` (CODATA 2014), so that numbers written by ASE and numbers
written here agree to the last digit.
"""

from ase import units as _ase

KCAL_PER_MOL = _ase.kcal / _ase.mol
"""One kcal/mol in eV (0.0433641)."""

KJ_PER_MOL = _ase.kJ / _ase.mol
"""One kJ/mol in eV (0.0103643)."""
HARTREE = _ase.Hartree
"""One Hartree in eV (27.2114)."""
RYDBERG = _ase.Rydberg
"""One Rydberg in eV (13.6057)."""
BOHR = _ase.Bohr
"""One Bohr in Å (0.529177)."""
GPA = _ase.GPa
"""One GPa in eV/Å³ (0.00624151)."""
BAR = _ase.bar
"""One bar in eV/Å³ (6.24151e-7)."""
