"""Conversion factors to the units used everywhere inside the project: eV and Å.

The values are those of ``ase.units`` (CODATA 2014), so that numbers written by ASE and numbers
written here agree to the last digit.
"""

from ase import units as _ase

KCAL_PER_MOL = _ase.kcal / _ase.mol
"""One kcal/mol in eV (0.0433641)."""
