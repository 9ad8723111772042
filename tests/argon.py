"""A crystal of Lennard-Jones atoms for tests at constant pressure: calculator, model, reference."""

import numpy as np
import torch
from ase import units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from lkm_calc.graph.scatter import sum_to
from lkm_calc.models.energy import AtomOutput, EnergyModel

EPSILON, SIGMA = 0.0104, 3.4  # eV, Å
INNER, CUTOFF = 4.0, 5.0  # Å; between them the potential fades out
WIDTH = CUTOFF**2 - INNER**2


def pair_energy(squared):
    """Return the energy in eV of pairs by the squares of their distances in Å²."""
    power, x = _power_and_place(squared)
    return 4 * EPSILON * (power * power - power) * _fading(x)


def pair_slope(squared):
    """Return the derivative of it by the square, in eV/Å²."""
    power, x = _power_and_place(squared)
    falling = 3 * (power - 2 * power * power) / squared * _fading(x)
    rise = x * (1 - x)
    return 4 * EPSILON * (falling - 30 / WIDTH * (power * power - power) * rise * rise)


def _power_and_place(squared):
    third = SIGMA**2 / squared  # powers by products: many times faster in NumPy
    return third * third * third, ((squared - INNER**2) / WIDTH).clip(0, 1)


def _fading(x):
    return 1 - x * x * x * (10 - x * (15 - 6 * x))


class ArgonCalculator(Calculator):
    """All pairs through their nearest images; nothing is remembered."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        cell = atoms.cell.array
        assert 1 / np.linalg.norm(np.linalg.inv(cell), axis=0).max() > 2 * CUTOFF
        scaled = atoms.positions @ np.linalg.inv(cell)
        vectors = scaled[:, None] - scaled
        vectors = (vectors - np.rint(vectors)) @ cell
        squared = np.square(vectors).sum(-1) + 1e9 * np.eye(len(atoms))
        slopes = 2 * pair_slope(squared)
        virial = 0.5 * np.einsum("ij,ijx,ijy->xy", slopes, vectors, vectors)
        self.results = {
            "energy": 0.5 * pair_energy(squared).sum(),
            "forces": -(slopes[..., None] * vectors).sum(1),
            "stress": full_3x3_to_voigt_6_stress(virial / atoms.get_volume()),
        }


class LennardJones(EnergyModel):
    """The same energy as a model of the package."""

    name = "lennard-jones"

    def __init__(self):
        super().__init__(CUTOFF, {})
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def atom_output(self, graph):
        energies = pair_energy(graph.edge_vectors().square().sum(-1))
        values = 0.5 * sum_to(energies, graph.edge_index[1], len(graph.numbers))
        return AtomOutput(self.weight * values, (values[:, None],))


def argon(length=5.3):
    """Return a cubic crystal of 32 atoms."""
    atoms = bulk("Ar", "fcc", length, cubic=True).repeat(2)
    atoms.calc = ArgonCalculator()
    return atoms


def sampled_volumes(kelvin, bar, sweeps, replicas=32, seed=0):
    """Return volumes (sweeps, replicas) in Å³ of the crystal at constant pressure, by Metropolis.

    Single atoms are moved, and ln V by W. W. Wood, J. Chem. Phys. 48, 415 (1968). The weight of a
    volume is V^(N−1) exp(−(U + pV)/kT): the centre of mass stands still, as in MD.
    """
    rng = np.random.default_rng(seed)
    atoms, beta, pressure = argon(), 1 / (units.kB * kelvin), bar * units.bar
    n = len(atoms)
    scaled = np.repeat(atoms.get_scaled_positions()[None], replicas, 0)
    length = np.full(replicas, atoms.cell[0, 0])

    def energies(vectors, length):  # of (replicas, ..., 3) scaled vectors, through nearest images
        vectors = vectors - np.rint(vectors)
        edge = length.reshape(-1, *[1] * (vectors.ndim - 2))
        squared = np.square(vectors).sum(-1) * edge**2
        return pair_energy(np.where(squared > 0, squared, 1e9))

    def total(length):
        return 0.5 * energies(scaled[:, :, None] - scaled[:, None], length).sum((1, 2))

    volumes = []
    for _ in range(sweeps):
        for k in range(n):
            new = scaled[:, k] + rng.uniform(-0.022, 0.022, (replicas, 3))
            others = np.delete(scaled, k, axis=1)
            change = energies(new[:, None] - others, length).sum(1)
            change -= energies(scaled[:, k, None] - others, length).sum(1)
            taken = rng.random(replicas) < np.exp(-beta * change)
            scaled[taken, k] = new[taken]
        trial = length * np.exp(rng.uniform(-0.008, 0.008, replicas))
        assert trial.min() > 2 * CUTOFF
        change = total(trial) - total(length) + pressure * (trial**3 - length**3)
        weight = 3 * n * np.log(trial / length) - beta * change  # V^(N−1) dV = V^N d ln V
        length = np.where(rng.random(replicas) < np.exp(weight), trial, length)
        volumes.append(length**3)
    return np.array(volumes)
