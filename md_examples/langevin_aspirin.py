"""Aspirin in a heat bath at 300 K and at 500 K.

Relaxes aspirin with the bundled model, then runs Langevin dynamics at each temperature: 0.2 ps with
a strong friction to equilibrate, then the run that is recorded, with a trajectory, a CSV log, a
progress bar and a plot of temperature and energies.

What you should see: each run fluctuates about its temperature by a sixth of it, as the molecule is
small, and the mean is within the printed standard error in two of three runs, 11 K at 300 K and
18 K at 500 K; the potential energy is higher at 500 K; the molecule turns and bends but stays in
one piece.

    python md_examples/langevin_aspirin.py               1.2 ps at each, two minutes
    python md_examples/langevin_aspirin.py --compile     two to three times as fast
    python md_examples/langevin_aspirin.py --ps 20       longer
    python md_examples/langevin_aspirin.py --quick       50 fs
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import read, write
from ase.io.trajectory import Trajectory
from ase.md import thermalize_momenta
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import BFGS
from matplotlib.figure import Figure
from tqdm import tqdm

from lkm_calc import LKMCalculator

START = Path(__file__).parent / "aspirin.xyz"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="rmd17-aspirin", help="bundled name or model file")
parser.add_argument("--start", type=Path, default=START, help="starting structure")
parser.add_argument("--temperatures", type=float, nargs="+", default=[300.0, 500.0], metavar="K")
parser.add_argument("--ps", type=float, default=1.2, help="length of the run at each temperature")
parser.add_argument("--step", type=float, default=0.5, help="time step in fs")
parser.add_argument("--friction", type=float, default=0.02, help="in 1/fs")
parser.add_argument("--seed", type=int, default=0, help="of velocities and random forces")
parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
parser.add_argument("--compile", action="store_true", help="by a kernel in C++, faster")
parser.add_argument("--output", type=Path, default=Path("runs/langevin_aspirin"), help="folder")
parser.add_argument("--quick", action="store_true", help="50 fs at each temperature")
options = parser.parse_args()
steps = round((0.05 if options.quick else options.ps) * 1000 / options.step)
settling = round((0.05 if options.quick else 0.2) * 1000 / options.step)
SETTLING_FRICTION = 0.05
"""1/fs; the energy of the molecule follows the bath with the time constant 1 / friction."""
options.output.mkdir(parents=True, exist_ok=True)


def bonds(atoms: Atoms) -> set[tuple[int, int]]:
    """Return the pairs closer than 1.25 times the sum of their covalent radii."""
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.25))
    return {(int(i), int(j)) for i, j in zip(first, second, strict=True) if i < j}


def standard_error(kelvin: float, atoms: int) -> float:
    """Return that of the mean temperature of a run, in K.

    The temperature fluctuates by √(2 / 3N) of itself, and what is correlated of that decays as the
    energy does, with the time 1 / friction. This is exact for harmonic vibrations; the scatter of
    so short a run is too small, as it has seen few of the fluctuations.
    """
    independent = max(1.0, options.friction * steps * options.step)
    return kelvin * float(np.sqrt(2 / (3 * atoms) / independent))


def simulate(relaxed: Atoms, kelvin: float) -> np.ndarray:
    """Run at one temperature; return time (ps), potential and kinetic energy (eV), temperature."""
    atoms = relaxed.copy()
    atoms.calc = relaxed.calc
    rng = np.random.default_rng([options.seed, round(kelvin)])
    # Half of it goes into the vibrations at once, see nve_ethanol.py.
    thermalize_momenta(atoms, 2 * kelvin, rng=rng)
    Stationary(atoms)
    ZeroRotation(atoms)

    def bath(friction: float) -> Langevin:
        # fixcm=False: it may push the molecule as a whole, as it does in nature.
        return Langevin(
            atoms,
            options.step * units.fs,
            temperature_K=kelvin,
            friction=friction / units.fs,
            fixcm=False,
            rng=rng,
        )

    bath(SETTLING_FRICTION).run(settling)
    dynamics = bath(options.friction)
    rows = []
    name = options.output / f"aspirin_{kelvin:.0f}K"

    def record() -> None:
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        time = dynamics.get_time() / (1000 * units.fs)
        rows.append((time, potential, kinetic, atoms.get_temperature()))

    with (
        Trajectory(f"{name}.traj", "w", atoms) as trajectory,
        tqdm(total=steps, unit="step", desc=f"{kelvin:.0f} K") as bar,
    ):
        dynamics.attach(record, interval=1)
        dynamics.attach(trajectory.write, interval=10)
        dynamics.attach(lambda: bar.update(dynamics.nsteps - bar.n), interval=10)
        dynamics.run(steps)
        bar.update(steps - bar.n)
    with open(f"{name}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time_ps", "potential_eV", "kinetic_eV", "temperature_K"])
        writer.writerows(rows)
    return np.array(rows)


molecule = read(options.start)
molecule.calc = LKMCalculator(options.model, dtype=options.dtype, compile=options.compile)
if not BFGS(molecule, logfile=None).run(fmax=0.02, steps=300):
    raise SystemExit("The relaxation did not converge: is the model one for this molecule?")
write(options.output / "relaxed.xyz", molecule)
minimum = molecule.get_potential_energy()

figure = Figure(figsize=(9, 5.4), layout="constrained")
top, bottom = figure.subplots(2, 1, sharex=True)
for colour, kelvin in enumerate(options.temperatures):
    time, potential, kinetic, temperature = simulate(molecule, kelvin).T
    top.plot(time, temperature, color=f"C{colour}", linewidth=0.8, label=f"{kelvin:.0f} K")
    top.axhline(kelvin, color=f"C{colour}", linestyle=":", linewidth=1)
    bottom.plot(time, potential - minimum, color=f"C{colour}", linewidth=0.8)
    last = read(options.output / f"aspirin_{kelvin:.0f}K.traj", index=-1)
    broken = bonds(molecule) - bonds(last)
    print(
        f"{kelvin:.0f} K: mean temperature {temperature.mean():.0f} ± "
        f"{standard_error(kelvin, len(molecule)):.0f} K, mean potential energy "
        f"{(potential - minimum).mean():.2f} eV above the minimum; "
        f"{len(broken)} of {len(bonds(molecule))} bonds broken"
    )
top.set(ylabel="temperature, K", title=f"Aspirin, Langevin, {options.step} fs, {options.model}")
top.legend(loc="upper right", framealpha=0.9)
bottom.set(xlabel="time, ps", ylabel="potential energy, eV")
figure.savefig(options.output / "aspirin.png", dpi=140)

print(f"Trajectories: {options.output}/aspirin_*.traj (look at them with: ase gui FILE)")
print(f"Logs: {options.output}/aspirin_*.csv   Picture: {options.output}/aspirin.png")
