"""Ethanol at constant energy: does the force field conserve it?

Relaxes ethanol with the bundled model, gives it the energy of 300 K and runs velocity Verlet with
steps of 0.5 fs in float64. Prints the drift of the total energy, from a linear fit.

What you should see: kinetic and potential energy, about 0.35 eV each, exchange some tenths of an
eV, while their sum is constant within a few tenths of a meV per atom; the drift over 20 ps is below
0.01 meV/atom/ps (the 0.5 ps of --quick are too short to determine it).

    python md_examples/nve_ethanol.py             20 ps, about five minutes on one core
    python md_examples/nve_ethanol.py --compile   the same with the C++ kernel, half a minute
    python md_examples/nve_ethanol.py --quick     0.5 ps
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from ase import units
from ase.build import molecule
from ase.io.trajectory import Trajectory
from ase.md import thermalize_momenta
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from matplotlib.figure import Figure
from tqdm import tqdm

from lkm_calc import LKMCalculator

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="rmd17-ethanol", help="bundled name or model file")
parser.add_argument("--ps", type=float, default=20.0, help="length of the run")
parser.add_argument("--temperature", type=float, default=300.0, help="in K")
parser.add_argument("--step", type=float, default=0.5, help="time step in fs")
parser.add_argument("--seed", type=int, default=0, help="of the velocities")
parser.add_argument("--output", type=Path, default=Path("runs/nve_ethanol"), help="folder")
parser.add_argument("--compile", action="store_true", help="use the C++ kernel")
parser.add_argument("--quick", action="store_true", help="0.5 ps")
options = parser.parse_args()
steps = round((0.5 if options.quick else options.ps) * 1000 / options.step)
options.output.mkdir(parents=True, exist_ok=True)

# At the minimum all energy is kinetic, and half of it goes into the vibrations within 10 fs: with
# the velocities of twice the temperature the molecule then has the one asked for.
atoms = molecule("CH3CH2OH")
atoms.calc = LKMCalculator(options.model, dtype="float64", compile=options.compile)
if not BFGS(atoms, logfile=None).run(fmax=0.001, steps=500):
    raise SystemExit("The relaxation did not converge: is the model one for ethanol?")
rng = np.random.default_rng(options.seed)
thermalize_momenta(atoms, 2 * options.temperature, exact_temperature=True, rng=rng)
Stationary(atoms)
ZeroRotation(atoms)

dynamics = VelocityVerlet(atoms, options.step * units.fs)
log = []  # time in ps, potential and kinetic energy in eV, temperature in K


def record() -> None:
    """Keep the energies of the present step."""
    potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
    log.append(
        (dynamics.get_time() / (1000 * units.fs), potential, kinetic, atoms.get_temperature())
    )


with Trajectory(options.output / "trajectory.traj", "w", atoms) as trajectory:
    dynamics.attach(record, interval=1)
    dynamics.attach(trajectory.write, interval=20)
    with tqdm(total=steps, unit="step") as bar:
        dynamics.attach(lambda: bar.update(dynamics.nsteps - bar.n), interval=10)
        dynamics.run(steps)
        bar.update(steps - bar.n)

with (options.output / "energies.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["time_ps", "potential_eV", "kinetic_eV", "temperature_K"])
    writer.writerows(log)

time, potential, kinetic, temperature = np.array(log).T
total = 1000 * (potential + kinetic) / len(atoms)  # meV/atom
total -= total[0]
drift, offset = np.polyfit(time, total, 1)

figure = Figure(figsize=(9, 5.4), layout="constrained")
top, bottom = figure.subplots(2, 1, sharex=True)
top.plot(time, potential - potential.min(), linewidth=0.7, label="potential, from its minimum")
top.plot(time, kinetic, linewidth=0.7, label="kinetic")
top.set(ylabel="energy, eV", title=f"Ethanol, NVE, {options.step} fs steps, {options.model}")
top.legend(loc="upper right", framealpha=0.9)
bottom.plot(time, total, linewidth=0.5, color="0.4", label="total, from its start")
bottom.plot(time, drift * time + offset, color="C3", label=f"line fit: {drift:+.2g} meV/atom/ps")
bottom.set(xlabel="time, ps", ylabel="meV per atom")
bottom.legend(loc="upper right", framealpha=0.9)
figure.savefig(options.output / "energies.png", dpi=140)

print(f"Mean temperature: {temperature.mean():.0f} K over {time[-1]:.2f} ps")
print(f"Total energy: drift {drift:+.2e} meV/atom/ps, spread {total.std():.2e} meV/atom")
print(f"Trajectory, log and picture: {options.output}/trajectory.traj, energies.csv, energies.png")
