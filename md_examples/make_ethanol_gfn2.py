"""Generate a training set: ethanol labelled with GFN2-xTB.

Runs Langevin dynamics of ethanol at several temperatures with the semiempirical method GFN2-xTB
(Bannwarth, Ehlert and Grimme 2019, doi:10.1021/acs.jctc.8b01176), saves frames at intervals with
energy and forces, shuffles them and writes ethanol_gfn2.h5, which lkm-train reads. Copy the script
and insert your molecule and your ASE calculator. Requires tblite: pip install tblite.

The ethanol_gfn2.h5 in this folder was generated with tblite 0.8.0 and ASE 3.29.0:

    OMP_NUM_THREADS=1 python md_examples/make_ethanol_gfn2.py --output md_examples

What you should see: each run fluctuates about its temperature; no frame has a broken bond; forces
and −dE/dx agree within 0.0002 eV/Å; the file has 500 frames and about 0.2 MB. Frames differ between
machines because of round-off.

    python md_examples/make_ethanol_gfn2.py             500 frames in 106 ps, about five minutes
    python md_examples/make_ethanol_gfn2.py --quick     12 frames in 0.3 ps, to see that it runs
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.fd import calculate_numerical_forces
from ase.md import thermalize_momenta
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import BFGS
from lkm_train.data import Frames
from lkm_train.formats import write_hdf5
from tblite.ase import TBLite
from tqdm import tqdm

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument(
    "--temperatures", type=float, nargs="+", default=[300.0, 500.0, 800.0], metavar="K"
)
parser.add_argument(
    "--frames", type=int, nargs="+", default=[150, 200, 150], metavar="N", help="at each of them"
)
parser.add_argument("--every", type=float, default=200.0, help="fs between frames")
parser.add_argument("--equilibration", type=float, default=2000.0, help="fs before the first frame")
parser.add_argument("--step", type=float, default=0.5, help="time step in fs")
parser.add_argument("--friction", type=float, default=0.01, help="in 1/fs")
parser.add_argument("--seed", type=int, default=0, help="of velocities, random forces and order")
parser.add_argument("--output", type=Path, default=Path("runs/ethanol_gfn2"), help="folder")
parser.add_argument("--quick", action="store_true", help="4 frames at each temperature")
options = parser.parse_args()
if options.quick:
    options.frames = [4] * len(options.temperatures)
    options.every, options.equilibration = 20.0, 20.0
if len(options.frames) != len(options.temperatures):
    parser.error("--frames needs as many numbers as --temperatures")


def bonds(atoms: Atoms) -> set[tuple[int, int]]:
    """Return the pairs closer than 1.25 times the sum of their covalent radii."""
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.25))
    return {(int(i), int(j)) for i, j in zip(first, second, strict=True) if i < j}


def sample(relaxed: Atoms, kelvin: float, n_frames: int) -> list[Atoms]:
    """Run at one temperature; return frames with their energy (eV) and forces (eV/Å)."""
    atoms = relaxed.copy()
    atoms.calc = relaxed.calc
    rng = np.random.default_rng([options.seed, round(kelvin)])
    # Half of it goes into the vibrations at once, see nve_ethanol.py.
    thermalize_momenta(atoms, 2 * kelvin, rng=rng)
    Stationary(atoms)
    ZeroRotation(atoms)
    dynamics = Langevin(
        atoms,
        options.step * units.fs,
        temperature_K=kelvin,
        friction=options.friction / units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(round(options.equilibration / options.step))
    frames, temperatures = [], []
    dynamics.attach(lambda: temperatures.append(atoms.get_temperature()), interval=1)
    for _ in tqdm(range(n_frames), unit="frame", desc=f"{kelvin:.0f} K"):
        dynamics.run(round(options.every / options.step))
        frames.append(atoms.copy())
        frames[-1].info["energy"] = atoms.get_potential_energy()
        frames[-1].arrays["forces"] = atoms.get_forces()
        # The bath has pushed the molecule away; nothing depends on where it is.
        frames[-1].positions -= frames[-1].get_center_of_mass()
    print(f"{kelvin:.0f} K: mean temperature {np.mean(temperatures):.0f} K, {n_frames} frames")
    return frames


# The self-consistent field is converged to a hundredth of what is usual: labels should be smooth.
ethanol = molecule("CH3CH2OH")
ethanol.calc = TBLite(method="GFN2-xTB", accuracy=0.01, verbosity=0)
if not BFGS(ethanol, logfile=None).run(fmax=0.001, steps=500):
    raise SystemExit("The relaxation did not converge: does the method suit the molecule?")

samples = [
    atoms
    for kelvin, n_frames in zip(options.temperatures, options.frames, strict=True)
    for atoms in sample(ethanol, kelvin, n_frames)
]
# Shuffled, so that the first hundred of them are as good a choice as any.
order = np.random.default_rng(options.seed).permutation(len(samples))
samples = [samples[i] for i in order]
frames = Frames.of_one_molecule(
    numbers=ethanol.numbers.astype(np.int64),
    positions=np.array([atoms.positions for atoms in samples]),
    energies=np.array([atoms.info["energy"] for atoms in samples]),
    forces=np.array([atoms.arrays["forces"] for atoms in samples]),
)

broken = sum(bool(bonds(ethanol) - bonds(atoms)) for atoms in samples)
hottest = samples[int(np.argmax(frames.energies))].copy()
hottest.calc = ethanol.calc
numerical = calculate_numerical_forces(hottest, eps=1e-3)
print(f"{broken} of {len(samples)} frames with a broken bond")
print(
    f"Forces and −dE/dx of the frame highest in energy differ by "
    f"{np.abs(numerical - hottest.get_forces()).max():.1e} eV/Å at most"
)
above = frames.energies - ethanol.get_potential_energy()
print(
    f"Energies {above.min():.2f} to {above.max():.2f} eV above the relaxed start, "
    f"spread {above.std():.2f} eV; "
    f"root-mean-square force {np.sqrt(np.mean(frames.forces**2)):.2f} eV/Å"
)

options.output.mkdir(parents=True, exist_ok=True)
path = options.output / "ethanol_gfn2.h5"
kelvins = ", ".join(
    f"{n} at {kelvin:g} K" for kelvin, n in zip(options.temperatures, options.frames, strict=True)
)
write_hdf5(
    frames,
    path,
    description=f"Ethanol, GFN2-xTB (doi:10.1021/acs.jctc.8b01176) with tblite "
    f"{version('tblite')}: {len(frames)} frames of Langevin dynamics, {kelvins}, each "
    f"{options.every:g} fs after the last, shuffled. Made by md_examples/make_ethanol_gfn2.py of "
    f"lkm-calc, seed {options.seed}.",
)
print(f"Data: {path}, {path.stat().st_size / 1e6:.2f} MB")
