"""Generate the data set of the extrapolation benchmark: acetylacetone labelled with GFN2-xTB.

Training frames come from Langevin dynamics at 300 K. Test frames outside the training distribution
are from dynamics at 600 K and 1000 K, a relaxed scan of the dihedral angle about the C–C single
bond across its barrier, the transfer of the proton between the oxygens, and a bond stretched until
it breaks. The molecule is that of the extrapolation benchmark of BOTNet and MACE (Batatia et al.
2022, arXiv:2205.06643), here labelled with GFN2-xTB (doi:10.1021/acs.jctc.8b01176).

The files in ``benchmarks/acetylacetone`` were generated with tblite 0.8.0 and ASE 3.29.0:

    OMP_NUM_THREADS=1 python -m benchmarks.make_acetylacetone_gfn2

Requires tblite (``pip install "lkm-calc[label]"``); takes about twenty minutes.
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.constraints import FixInternals
from ase.md import thermalize_momenta
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.optimize import BFGS
from lkm_train.data import Frames
from lkm_train.formats import write_hdf5
from tblite.ase import TBLite

FOLDER = Path(__file__).parent / "acetylacetone"
RUNS = {"train_300K": (300, 500), "test_300K": (300, 200), "test_600K": (600, 200)}
RUNS["test_1000K"] = (1000, 200)
EVERY, EQUILIBRATION, STEP, FRICTION = 100.0, 2000.0, 0.5, 0.01  # fs, fs, fs, 1/fs

PLANAR = """
C  0.00  0.00  0.00
C -1.22 -0.70  0.00
C  1.22 -0.70  0.00
O -1.25 -1.97  0.00
O  1.25 -1.97  0.00
C -2.50  0.10  0.00
C  2.50  0.10  0.00
H  0.00  1.08  0.00
H  0.35 -2.35  0.00
H -3.35 -0.58  0.05
H -2.55  0.74  0.89
H -2.55  0.74 -0.87
H  3.35 -0.58 -0.05
H  2.55  0.74 -0.89
H  2.55  0.74  0.87
"""
"""The enol form, roughly, in Å: atom 8 is the proton between the oxygens 3 and 4."""

DIHEDRAL = (3, 1, 0, 2)
"""O=C–C=C: turning it moves the acetyl group out of the plane of the hydrogen bond."""
TURNING = [3, 5, 9, 10, 11]
STRETCHED, LEAVING = (2, 6), [6, 12, 13, 14]
"""The C–C bond to a methyl group, and the atoms that go with it."""


def relaxed() -> Atoms:
    """Return the minimum of the enol form with its calculator."""
    lines = [line.split() for line in PLANAR.split("\n") if line]
    atoms = Atoms([row[0] for row in lines], [[float(x) for x in row[1:]] for row in lines])
    # Converged a hundred times tighter than usual: labels should be smooth.
    atoms.calc = TBLite(method="GFN2-xTB", accuracy=0.01, verbosity=0)
    minimise(atoms)
    return atoms


def minimise(atoms: Atoms) -> None:
    """Relax a structure, or say that it could not be."""
    if not BFGS(atoms, logfile=None).run(fmax=0.005, steps=1000):
        raise SystemExit("A relaxation did not converge.")


def labelled(atoms: Atoms) -> Atoms:
    """Return a copy with energy (eV) and forces (eV/Å)."""
    copy = Atoms(atoms.numbers, atoms.positions)
    copy.info["energy"] = atoms.get_potential_energy(apply_constraint=False)
    copy.arrays["forces"] = atoms.get_forces(apply_constraint=False)
    return copy


def sample(start: Atoms, kelvin: float, count: int, seed: int) -> list[Atoms]:
    """Return frames of Langevin dynamics at one temperature."""
    atoms = start.copy()
    atoms.calc = start.calc
    rng = np.random.default_rng(seed)
    thermalize_momenta(atoms, 2 * kelvin, rng=rng)  # half goes into the vibrations at once
    Stationary(atoms)
    ZeroRotation(atoms)
    dynamics = Langevin(
        atoms,
        STEP * units.fs,
        temperature_K=kelvin,
        friction=FRICTION / units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(round(EQUILIBRATION / STEP))
    frames = []
    for _ in range(count):
        dynamics.run(round(EVERY / STEP))
        frames.append(labelled(atoms))
        frames[-1].positions -= atoms.get_center_of_mass()
    return frames


def dihedral_scan(start: Atoms) -> list[Atoms]:
    """Return the scan of the dihedral angle in steps of 5°, everything else relaxed."""
    frames = []
    atoms = start.copy()
    atoms.calc = start.calc
    for angle in np.arange(0.0, 181.0, 5.0):
        atoms.set_constraint()
        atoms.set_dihedral(*DIHEDRAL, float(angle), indices=TURNING)
        atoms.set_constraint(FixInternals(dihedrals_deg=[[float(angle), list(DIHEDRAL)]]))
        minimise(atoms)
        frames.append(labelled(atoms))
    return frames


def proton_transfer(start: Atoms) -> list[Atoms]:
    """Return the proton on the way between the oxygens, everything else as at the minimum."""
    frames = []
    for x in np.linspace(0.0, 1.0, 31):
        atoms = start.copy()
        atoms.calc = start.calc
        first, second = atoms.positions[3], atoms.positions[4]
        along = (second - first) / np.linalg.norm(second - first)
        offset = atoms.positions[8] - first
        across = offset - (offset @ along) * along
        length = np.linalg.norm(second - first)
        reach = 0.85 / length
        atoms.positions[8] = first + along * length * (reach + x * (1 - 2 * reach)) + across
        frames.append(labelled(atoms))
    return frames


def stretch(start: Atoms) -> list[Atoms]:
    """Return the bond from 1.2 to 3.0 Å, everything else as at the minimum."""
    frames = []
    for length in np.linspace(1.2, 3.0, 37):
        atoms = start.copy()
        atoms.calc = start.calc
        fixed, moving = STRETCHED
        vector = atoms.positions[moving] - atoms.positions[fixed]
        atoms.positions[LEAVING] += vector * (length / np.linalg.norm(vector) - 1)
        frames.append(labelled(atoms))
    return frames


def write(name: str, frames: list[Atoms], about: str) -> None:
    """Write frames of the molecule to a file of the folder."""
    path = FOLDER / f"{name}.h5"
    write_hdf5(
        Frames.of_one_molecule(
            numbers=frames[0].numbers.astype(np.int64),
            positions=np.array([atoms.positions for atoms in frames]),
            energies=np.array([atoms.info["energy"] for atoms in frames]),
            forces=np.array([atoms.arrays["forces"] for atoms in frames]),
        ),
        path,
        description=f"Acetylacetone (enol), GFN2-xTB with tblite {version('tblite')}: {about}. "
        "Made by benchmarks/make_acetylacetone_gfn2.py of lkm-calc.",
    )
    energies = np.array([atoms.info["energy"] for atoms in frames])
    print(f"{path}: {len(frames)} frames, spread of energies {np.ptp(energies):.2f} eV")


def main() -> None:
    """Make the files that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="names of files, without .h5")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    start = relaxed()
    paths = {
        "dihedral": (dihedral_scan, "relaxed scan of the dihedral O=C–C=C, 0° to 180°"),
        "proton": (proton_transfer, "the proton on its way between the oxygens"),
        "stretch": (stretch, "a methyl C–C bond from 1.2 to 3.0 Å"),
    }
    for seed, (name, (kelvin, count)) in enumerate(RUNS.items()):
        if options.only is None or name in options.only:
            about = f"{count} frames of Langevin dynamics at {kelvin} K, {EVERY:g} fs apart"
            write(name, sample(start, kelvin, count, seed), about)
    for name, (make, about) in paths.items():
        if options.only is None or name in options.only:
            write(name, make(start), about)


if __name__ == "__main__":
    main()
