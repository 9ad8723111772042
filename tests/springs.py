"""A calculator for tests of MD that need no model: springs between all pairs of atoms."""

import numpy as np
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes

from .support import rattled


class PairSprings(Calculator):
    """Springs between all pairs: translation and rotation are free, and nothing is remembered."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, rest):
        super().__init__()
        self.rest = rest.get_all_distances() + np.eye(len(rest))
        self.stiffness = 30 / self.rest**4 * (1 - np.eye(len(rest)))

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        vectors = atoms.positions[:, None] - atoms.positions
        distances = np.linalg.norm(vectors, axis=-1) + np.eye(len(atoms))
        stretch = distances - self.rest
        self.results = {
            "energy": 0.25 * (self.stiffness * stretch**2).sum(),
            "forces": -((self.stiffness * stretch / distances)[..., None] * vectors).sum(1),
        }


def spring_molecule():
    """Return ethanol held together by springs."""
    atoms = rattled(amplitude=0.05)
    atoms.calc = PairSprings(molecule("CH3CH2OH"))
    return atoms
