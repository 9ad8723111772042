"""Compute the tables of free-atom energies in train/free_atoms.py.

    pip install pyscf==2.14.0 tblite==0.8.0 mendeleev==1.3.0
    python studies/free_atoms.py > tables.txt

The all-electron energies come from a Kohn–Sham solver in B-splines of the radius, for spherical,
spin-polarised densities, with functionals of libxc by pyscf: PBE, for the densities of LSD. Its LSD
energies are those of NIST's Atomic Reference Data for Electronic Structure Calculations (SRD 141)
to 1e-6 Hartree: H −0.478671, C −37.470031, Fe −1261.223291, Kr −2750.147940.
"""

import importlib
import sys
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.linalg import eigh

Floats = NDArray[np.float64]

HARTREE = 27.211386245988
"""eV, CODATA 2018."""
DEGREE, INTERVALS, LARGEST_RADIUS = 8, 90, 45.0
"""Of the splines; the radius in Bohr."""
MIXING, CYCLES, CONVERGED = 0.3, 500, 1e-7
"""Share of the new potential, largest number of cycles, and share of the electrons that move."""
HEAVIEST = 94


class Shells(NamedTuple):
    """The occupied orbitals of one angular momentum and spin."""

    angular: int
    spin: int
    electrons: Floats
    """(shells) spread evenly over the orbitals of each."""


class Basis:
    """B-splines u(r) = r R(r) that vanish at both ends, on a grid of radii, and their integrals."""

    def __init__(self, z: int) -> None:
        inner = np.geomspace(0.02 / z, LARGEST_RADIUS, INTERVALS)
        knots = np.concatenate([[0.0] * (DEGREE + 1), inner, [LARGEST_RADIUS] * DEGREE])
        nodes, weights = np.polynomial.legendre.leggauss(DEGREE + 4)
        edges = np.unique(knots)
        half = np.diff(edges)[:, None] / 2
        self.r = ((edges[:-1, None] + edges[1:, None]) / 2 + half * nodes).ravel()
        self.w = (half * weights).ravel()
        count = len(knots) - DEGREE - 1
        splines = BSpline(knots, np.eye(count), DEGREE)
        values, slopes = splines(self.r), splines.derivative()(self.r)
        self.last = values[:, -1], slopes[:, -1]  # the only one that is not zero at the end
        self.b, self.db = values[:, 1:-1], slopes[:, 1:-1]
        one = np.ones_like(self.r)
        self.overlap = self.between(self.b, one, self.b)
        self.stiffness = self.between(self.db, one, self.db)
        self.barrier = self.between(self.b, 0.5 / self.r**2, self.b)

    def between(self, left: Floats, values: Floats, right: Floats) -> Floats:
        """Return the integrals of products of splines with a function."""
        matrix: Floats = left.T @ ((self.w * values)[:, None] * right)
        return matrix

    def core(self, angular: int) -> Floats:
        """Return the matrix of the kinetic energy."""
        return self.stiffness / 2 + angular * (angular + 1) * self.barrier

    def hartree(self, charge: Floats) -> Floats:
        """Return the potential V of a radial density 4π r² n: U'' = −charge / r with U = r V."""
        total = float(self.w @ charge)
        last, slope = self.last
        right = self.b.T @ (self.w * charge / self.r)
        right -= total * (self.db.T @ (self.w * slope))
        u = self.b @ np.linalg.solve(self.stiffness, right) + total * last
        potential: Floats = u / self.r
        return potential


class Density(NamedTuple):
    """Spin densities on the grid, their slopes, and the kinetic energy in Hartree."""

    values: Floats
    slopes: Floats
    kinetic: float


def shells_of(z: int) -> list[Shells]:
    """Return the experimental ground-state configuration, with Hund's rule in the open shells."""
    found = []
    elements = importlib.import_module("pyscf.data.elements")
    for angular, electrons in enumerate(elements.CONFIGURATION[z]):
        size = 2 * angular + 1
        full, rest = divmod(electrons, 2 * size)
        for spin, part in enumerate((min(rest, size), max(0, rest - size))):
            counts = [float(size)] * full + [float(part)] * (part > 0)
            if counts:
                found.append(Shells(angular, spin, np.array(counts)))
    return found


def unpaired(z: int) -> int:
    """Return the number of unpaired electrons."""
    return round(sum(float(s.electrons.sum()) * (1 - 2 * s.spin) for s in shells_of(z)))


def density_of(basis: Basis, shells: list[Shells], potentials: list[Floats]) -> Density:
    """Return the density of the lowest orbitals in potentials, one for each of the shells."""
    values, slopes, kinetic = np.zeros((2, len(basis.r))), np.zeros((2, len(basis.r))), 0.0
    area = 4 * np.pi * basis.r**2
    for (angular, spin, electrons), potential in zip(shells, potentials, strict=True):
        core = basis.core(angular)
        count = [0, len(electrons) - 1]
        _, c = eigh(core + potential, basis.overlap, subset_by_index=count)
        u, du = basis.b @ c, basis.db @ c
        values[spin] += u**2 @ electrons / area
        slopes[spin] += (2 * u * du - 2 * u**2 / basis.r[:, None]) @ electrons / area
        kinetic += float(electrons @ np.einsum("ik,ij,jk->k", c, core, c))
    return Density(values, slopes, kinetic)


def local_density(density: Density) -> tuple[Floats, Floats]:
    """Return the energy per electron of LSD with the correlation VWN5, and the potentials."""
    libxc = importlib.import_module("pyscf.dft.libxc")
    exc, (vrho, *_) = libxc.eval_xc("SVWN", tuple(density.values), spin=1)[:2]
    return exc, vrho.T


def pbe(density: Density) -> Floats:
    """Return the energy per electron of PBE."""
    libxc = importlib.import_module("pyscf.dft.libxc")
    zero = np.zeros_like(density.values[0])
    rho = [np.stack([n, dn, zero, zero]) for n, dn in zip(*density[:2], strict=True)]
    energy: Floats = libxc.eval_xc("PBE", tuple(rho), spin=1, deriv=0)[0]
    return energy


def atom_energies(z: int) -> tuple[float, float]:
    """Return the total energies of an atom in Hartree by LSD, and by PBE for the density of LSD."""
    basis, shells = Basis(z), shells_of(z)
    r, b = basis.r, basis.b
    nucleus = -z / r
    potentials = [basis.between(b, nucleus / (1 + r * z ** (1 / 3) / 2), b)] * len(shells)
    charge = np.zeros_like(r)
    for _ in range(CYCLES):
        density = density_of(basis, shells, potentials)
        before, charge = charge, 4 * np.pi * r**2 * density.values.sum(0)
        hartree = basis.hartree(charge)
        exc, exchange = local_density(density)
        if basis.w @ np.abs(charge - before) < CONVERGED * z:
            classical = density.kinetic + float(basis.w @ (charge * (hartree / 2 + nucleus)))
            lsd, gradient = (float(basis.w @ (charge * e)) for e in (exc, pbe(density)))
            return classical + lsd, classical + gradient
        by_spin = [basis.between(b, hartree + nucleus + v, b) for v in exchange]
        potentials = [
            (1 - MIXING) * old + MIXING * by_spin[spin]
            for old, (_, spin, _) in zip(potentials, shells, strict=True)
        ]
    raise ArithmeticError(f"{chemical_symbols[z]} did not converge.")


def xtb_energy(z: int) -> float:
    """Return the energy of an atom by GFN2-xTB in eV, NaN beyond radon.

    Lanthanides have three valence electrons there, one of them unpaired.
    """
    if z > 86:
        return np.nan
    lone = 1 if 57 <= z <= 71 else unpaired(z)
    interface: Any = importlib.import_module("tblite.interface")
    atom = interface.Calculator("GFN2-xTB", np.array([z]), np.zeros((1, 3)), uhf=lone)
    atom.set("verbosity", 0)
    return float(atom.singlepoint().get("energy")) * HARTREE


def valence_energy(z: int) -> float:
    """Return minus the sum of the ionisation energies of an atom's valence electrons in eV.

    Valence electrons are those of the potentials GTH-PBE; NaN beyond radon.
    """
    if z > 86:
        return np.nan
    potential = importlib.import_module("pyscf.pbc.gto.pseudo").load("gth-pbe", chemical_symbols[z])
    energies = importlib.import_module("mendeleev").element(z).ionenergies
    return -float(sum(energies[k] for k in range(1, sum(potential[0]) + 1)))


def main() -> None:
    """Print a line for each element: symbol, and energies in eV."""
    for z in range(1, HEAVIEST + 1):
        row = (atom_energies(z)[1] * HARTREE, valence_energy(z), xtb_energy(z))
        sys.stdout.write(f"{chemical_symbols[z]} {' '.join(f'{e:.2f}' for e in row)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
