"""Constant-pressure MD with ASE's Martyna-Tobias-Klein integrators, and their state."""

from collections.abc import Mapping
from typing import Any

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT

from ..units import BAR

CONSTANT_PRESSURE = ("npt-isotropic", "npt-flexible")
"""Ensembles at constant pressure: the cell is only scaled, or fully flexible."""

Barostatted = IsotropicMTKNPT | MTKNPT
"""The integrators of these ensembles."""

SIZES = (0.1, 10.0)
"""Allowed range of the volume relative to the initial one; a run outside of it is stopped."""

_STRAINS = 6
"""Degrees of freedom of a cell that does not rotate: its momentum is a symmetric matrix."""


def is_bulk(atoms: ase.Atoms) -> bool:
    """Return whether a structure is periodic in three directions, so that pressure is defined."""
    return bool(atoms.pbc.all() and atoms.cell.rank == 3)


def pressure(atoms: ase.Atoms) -> float | None:
    """Return the pressure in bar, including the kinetic contribution.

    None if the structure is not periodic in three directions or the calculator has no stress.
    """
    if not is_bulk(atoms):
        return None
    try:
        stress = atoms.get_stress(voigt=False, include_ideal_gas=True)
    except PropertyNotImplementedError:
        return None
    return float(-np.trace(stress) / 3 / BAR)


def volume(atoms: ase.Atoms) -> float | None:
    """Return the volume of the cell in Å³, or None if not periodic in three directions."""
    return float(atoms.get_volume()) if is_bulk(atoms) else None


def check_bulk(atoms: ase.Atoms, ensemble: str) -> None:
    """Raise a ValueError if a structure cannot be simulated at constant pressure."""
    if not is_bulk(atoms):
        raise ValueError(
            f"{ensemble} needs a structure that is periodic in three directions; pbc is "
            f"{atoms.pbc.tolist()} and cell is {atoms.cell.tolist()}. Set a cell, or choose an "
            "ensemble at constant volume."
        )
    if atoms.constraints:
        raise ValueError(
            f"{ensemble} does not support constraints. Remove them, or choose an ensemble at "
            "constant volume."
        )


def make_barostatted(
    atoms: ase.Atoms,
    ensemble: str,
    free: int,
    *,
    timestep: float,
    temperature: float,
    pressure: float,
    damping: float,
    pressure_damping: float,
) -> Barostatted:
    """Return ASE's integrator with corrected numbers of degrees of freedom.

    The equations are those of Martyna, Tobias and Klein, J. Chem. Phys. 101, 4177 (1994), where N_f
    is the number of degrees of freedom of the atoms. ASE sets N_f = 3N although the total momentum
    is conserved at zero, which would heat the atoms to N/(N − 1) of the target temperature. It also
    counts nine degrees of freedom for a flexible cell, whose symmetric momentum has six, which
    would heat the cell to 1.5 times the target temperature.

    Args:
        atoms: The structure with its calculator.
        ensemble: One of CONSTANT_PRESSURE.
        free: N_f, the number of degrees of freedom of the atoms.
        timestep: In fs.
        temperature: In K.
        pressure: In bar.
        damping: Time constant of the thermostat in fs.
        pressure_damping: Time constant of the barostat in fs.
    """
    kind = IsotropicMTKNPT if ensemble == "npt-isotropic" else MTKNPT
    dynamics: Any = kind(
        atoms,
        timestep * units.fs,
        temperature_K=temperature,
        pressure_au=pressure * BAR,
        tdamp=damping * units.fs,
        pdamp=pressure_damping * units.fs,
    )
    # ASE uses three times this number as N_f.
    dynamics._num_atoms_global = free / 3
    count_degrees_of_freedom(dynamics._thermostat, free, temperature)
    if kind is MTKNPT:
        barostat = dynamics._barostat
        barostat._R[0] *= _STRAINS / barostat._cell_dof
        barostat._cell_dof = _STRAINS
    return dynamics  # type: ignore[no-any-return]


def count_degrees_of_freedom(chain: Any, free: int, temperature: float) -> None:
    """Set the target of an ASE Nosé-Hoover chain to ``free`` degrees of freedom."""
    chain._num_atoms_global = free / 3
    chain._Q[0] = free * units.kB * temperature * chain._tdamp**2


def extended_energy(dynamics: Barostatted) -> float:
    """Return the conserved quantity in eV: energy of atoms, chains and cell, plus p·V.

    Like ASE's own method, which needs ``free_energy`` for one of the integrators; not every
    calculator provides that.
    """
    hidden: Any = dynamics
    momentum = hidden._p_g if isinstance(dynamics, MTKNPT) else hidden._p_eps
    return float(
        hidden.atoms.get_total_energy()
        + hidden._thermostat.get_thermostat_energy()
        + hidden._barostat.get_barostat_energy()
        + np.square(momentum).sum() / (2 * hidden._barostat.W)
        + hidden._pressure_au * hidden.atoms.get_volume()
    )


def barostat_state(dynamics: Barostatted) -> dict[str, Any]:
    """Return coordinates and momenta of cell, thermostat and barostat."""
    hidden: Any = dynamics
    thermostat, barostat = hidden._thermostat, hidden._barostat
    chains = {
        "eta": thermostat._eta,
        "p_eta": thermostat._p_eta,
        "xi": barostat._xi,
        "p_xi": barostat._p_xi,
    }
    if isinstance(dynamics, MTKNPT):
        return {**chains, "p_cell": hidden._p_g}
    # The cell is the initial one, scaled; restoring the current one would not be bitwise exact.
    strain = {"first_cell": hidden._cell0, "strain": hidden._eps, "p_strain": hidden._p_eps}
    return {**chains, **strain, "first_volume": hidden._volume0}


def restore_barostat(dynamics: Barostatted, saved: Mapping[str, Any]) -> None:
    """Restore the state saved by :func:`barostat_state`."""
    hidden: Any = dynamics
    hidden._thermostat._eta, hidden._thermostat._p_eta = saved["eta"], saved["p_eta"]
    hidden._barostat._xi, hidden._barostat._p_xi = saved["xi"], saved["p_xi"]
    if isinstance(dynamics, MTKNPT):
        hidden._p_g = saved["p_cell"]
        return
    hidden._cell0, hidden._volume0 = saved["first_cell"], saved["first_volume"]
    hidden._eps, hidden._p_eps = saved["strain"], saved["p_strain"]
