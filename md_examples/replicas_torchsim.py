"""A hundred replicas of ethanol in one batch, with torch-sim.

Needs Python 3.12 and torch-sim: pip install "lkm-calc[torchsim]". Rattles ethanol a hundred times
over, relaxes all of them at once with FIRE, then runs Langevin dynamics of all at once and a few
steps of one of them with ASE, to compare the speed.

What you should see: the replicas relax into the minima of the two conformers, trans (180°, which is
also −180°) and gauche (about ±60°) of C-C-O-H, but for one or two that rest on the way between two
of them; in the dynamics the angles spread by some 30° about these, and the temperature over all
replicas comes near the one asked for (328 K after 0.1 ps). On one CPU core the batch makes one
and a half to three times as many replica steps a second as one replica after the other, and two to
three times as many as with --no-compile.

    python md_examples/replicas_torchsim.py             0.5 ps, some minutes on one core
    python md_examples/replicas_torchsim.py --quick     10 fs
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch_sim as ts
from ase import units
from ase.build import molecule
from ase.io import write
from ase.md.langevin import Langevin
from matplotlib.figure import Figure
from torch_sim.units import MetalUnits
from tqdm import tqdm

from lkm_calc import LKMCalculator
from lkm_calc.torchsim import LKMTorchSimModel

DIHEDRAL = [0, 1, 2, 3]  # C-C-O-H in ASE's ethanol

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="rmd17-ethanol", help="bundled name or model file")
parser.add_argument("--replicas", type=int, default=100)
parser.add_argument("--ps", type=float, default=0.5, help="length of the run")
parser.add_argument("--temperature", type=float, default=300.0, help="in K")
parser.add_argument("--step", type=float, default=0.5, help="time step in fs")
parser.add_argument("--friction", type=float, default=0.01, help="in 1/fs")
parser.add_argument("--seed", type=int, default=0, help="of displacements, velocities and forces")
parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
parser.add_argument(
    "--compile", action=argparse.BooleanOptionalAction, default=True, help="take the kernel in C++"
)
parser.add_argument("--output", type=Path, default=Path("runs/replicas_torchsim"), help="folder")
parser.add_argument("--quick", action="store_true", help="10 fs, and a looser relaxation")
options = parser.parse_args()
steps = round((0.01 if options.quick else options.ps) * 1000 / options.step)
options.output.mkdir(parents=True, exist_ok=True)
ethanol = molecule("CH3CH2OH")
model = LKMTorchSimModel(options.model, dtype=options.dtype, compile=options.compile)


def dihedrals(state: ts.SimState) -> np.ndarray:
    """Return C-C-O-H of each replica in degrees, from −180 to 180."""
    angles = [atoms.get_dihedral(*DIHEDRAL) for atoms in ts.io.state_to_atoms(state)]
    return (np.array(angles) + 180) % 360 - 180


rng = np.random.default_rng(options.seed)
replicas = []
for _ in range(options.replicas):
    atoms = ethanol.copy()
    atoms.rotate_dihedral(*DIHEDRAL, angle=rng.uniform(0, 360), indices=[3])
    atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
    replicas.append(atoms)
relaxed = ts.optimize(
    system=replicas,
    model=model,
    optimizer=ts.Optimizer.fire,
    convergence_fn=ts.generate_force_convergence_fn(0.5 if options.quick else 0.02),
    max_steps=60 if options.quick else 500,
)
left = ts.system_wise_max_force(relaxed).max().item()
relative = 1000 * (relaxed.energy - relaxed.energy.min())  # meV
print(f"Relaxed: largest force {left:.3f} eV/Å, energies within {relative.max():.0f} meV")

kelvin = options.temperature * MetalUnits.temperature
dt = options.step / 1000 * MetalUnits.time
relaxed.rng = options.seed
# Half of the energy goes into the vibrations at once, see nve_ethanol.py.
state = ts.nvt_langevin_init(relaxed, model, kT=2 * kelvin)
friction = options.friction * 1000 / MetalUnits.time
log = []  # time in ps, mean energies of the replicas in eV, their mean temperature in K
angles = []
began = time.perf_counter()
for k in tqdm(range(steps), unit="step"):
    state = ts.nvt_langevin_step(state, model, dt=dt, kT=kelvin, gamma=friction)
    kinetic = ts.calc_kinetic_energy(
        masses=state.masses, momenta=state.momenta, system_idx=state.system_idx
    )
    means = [values.mean().item() for values in (state.energy, kinetic, state.calc_temperature())]
    log.append(((k + 1) * options.step / 1000, *means))
    if k % 10 == 9:
        angles.append(dihedrals(state))
batch = steps * options.replicas / (time.perf_counter() - began)

one = ethanol.copy()
one.calc = LKMCalculator(options.model, dtype=options.dtype, compile=options.compile)
dynamics = Langevin(
    one,
    options.step * units.fs,
    temperature_K=options.temperature,
    friction=options.friction / units.fs,
    fixcm=False,
    rng=rng,
)
dynamics.run(5)
began = time.perf_counter()
dynamics.run(20)
single = 20 / (time.perf_counter() - began)

write(options.output / "last.xyz", ts.io.state_to_atoms(state))
with (options.output / "log.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["time_ps", "potential_eV", "kinetic_eV", "temperature_K"])
    writer.writerows(log)
figure = Figure(figsize=(7, 4), layout="constrained")
axes = figure.subplots()
axes.hist(dihedrals(relaxed), bins=np.arange(-180, 181, 10), density=True, label="relaxed")
axes.hist(np.ravel(angles), bins=np.arange(-180, 181, 10), density=True, alpha=0.6, label="MD")
axes.set(xlabel="C-C-O-H, degrees", ylabel="density", xlim=(-180, 180))
axes.set_title(f"{options.replicas} replicas of ethanol, {options.temperature:g} K")
axes.legend()
figure.savefig(options.output / "dihedrals.png", dpi=140)

half = np.array(log)[len(log) // 2 :, 3].mean()
print(f"Temperature of the second half, over all replicas: {half:.0f} K")
print(
    f"Batch of {options.replicas}: {batch / single:.1f} times the replica steps a second of one by "
    f"one with ASE ({batch:.0f} and {single:.0f})"
)
print(f"Log, last structures and picture: {options.output}/log.csv, last.xyz, dihedrals.png")
