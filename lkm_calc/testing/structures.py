"""Test structures, including cases in which angles or inverse distances are singular."""

import ase
import numpy as np
from ase.build import molecule


def rattled(name: str = "CH3CH2OH", seed: int = 0, amplitude: float = 0.1) -> ase.Atoms:
    """Return a molecule of ASE's database with random displacements."""
    atoms: ase.Atoms = molecule(name)
    atoms.positions += np.random.default_rng(seed).normal(0, amplitude, (len(atoms), 3))
    return atoms


def crystal(seed: int = 0, pbc: bool | list[bool] = True) -> ase.Atoms:
    """Return a triclinic periodic cell, smaller than the cutoff, with random displacements."""
    atoms = ase.Atoms(
        "SiOCH",
        scaled_positions=[[0, 0, 0], [0.5, 0.4, 0.1], [0.1, 0.5, 0.6], [0.6, 0.1, 0.55]],
        cell=[[4.2, 0, 0], [0.7, 4.0, 0], [-0.4, 0.5, 4.4]],
        pbc=pbc,
    )
    atoms.rattle(0.05, seed=seed)
    return atoms


def molecules() -> dict[str, ase.Atoms]:
    """Return molecules for which energy, forces and second derivatives must be finite."""
    water = molecule("H2O")
    return {
        "rattled ethanol": rattled(),
        "C": ase.Atoms("C"),
        "two atoms": ase.Atoms("CO", [[0, 0, 0], [1.1, 0, 0]]),
        "two atoms apart": ase.Atoms("CO", [[0, 0, 0], [80.0, 0, 0]]),
        "CO2": molecule("CO2"),
        "HCN": molecule("HCN"),
        "C2H2": molecule("C2H2"),
        "C6H6": molecule("C6H6"),
        "H2O at 1e-3 Å": water + ase.Atoms("H", [water.positions[0] + [0, 0, 1e-3]]),
    }


def crystals() -> dict[str, ase.Atoms]:
    """Return cells smaller than the cutoff, periodic in three, two and one directions."""
    return {
        "crystal": crystal(),
        "slab": crystal(pbc=[True, False, True]),
        "chain": crystal(pbc=[False, True, False]),
    }
