"""Ethanol in OpenMM, through OpenMM-ML.

Needs OpenMM and OpenMM-ML: pip install "lkm-calc[openmm]". Minimises ethanol with OpenMM, runs its
Langevin integrator and compares energy and forces of the last frame with those that ASE gets.

What you should see: the same energy to 0.001 meV and the same forces to 0.001 meV/Å, and a
temperature that fluctuates by a quarter of the target, because the molecule is small.

    python md_examples/openmm_ethanol.py             2 ps, a minute or two on one core
    python md_examples/openmm_ethanol.py --quick     50 fs
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import openmm
from ase import units
from ase.build import molecule
from openmm import app, unit
from openmmml import MLPotential

from lkm_calc import LKMCalculator

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="rmd17-ethanol", help="bundled name or model file")
parser.add_argument("--ps", type=float, default=2.0, help="length of the run")
parser.add_argument("--temperature", type=float, default=300.0, help="in K")
parser.add_argument("--step", type=float, default=0.5, help="time step in fs")
parser.add_argument("--friction", type=float, default=0.01, help="in 1/fs")
parser.add_argument("--seed", type=int, default=1, help="of velocities and random forces, not 0")
parser.add_argument("--output", type=Path, default=Path("runs/openmm_ethanol"), help="folder")
parser.add_argument("--quick", action="store_true", help="50 fs")
options = parser.parse_args()
steps = round((0.05 if options.quick else options.ps) * 1000 / options.step)
options.output.mkdir(parents=True, exist_ok=True)

atoms = molecule("CH3CH2OH")
topology = app.Topology()
residue = topology.addResidue("EOH", topology.addChain())
for k, number in enumerate(atoms.numbers):
    element = app.Element.getByAtomicNumber(int(number))
    topology.addAtom(f"{element.symbol}{k}", element, residue)

calculator = LKMCalculator(options.model, dtype="float64")
system = MLPotential("ase").createSystem(topology, calculator=calculator)
integrator = openmm.LangevinMiddleIntegrator(
    options.temperature * unit.kelvin,
    options.friction / unit.femtosecond,
    options.step * unit.femtosecond,
)
integrator.setRandomNumberSeed(options.seed)
simulation = app.Simulation(topology, system, integrator)
simulation.context.setPositions(atoms.positions * unit.angstrom)
simulation.minimizeEnergy(tolerance=1 * unit.kilojoule_per_mole / unit.nanometer)
# Half of the energy goes into the vibrations at once, see nve_ethanol.py.
simulation.context.setVelocitiesToTemperature(2 * options.temperature, options.seed)
log = options.output / "log.csv"
simulation.reporters.append(app.DCDReporter(str(options.output / "trajectory.dcd"), 10))
simulation.reporters.append(
    app.StateDataReporter(
        str(log), 1, time=True, potentialEnergy=True, kineticEnergy=True, temperature=True
    )
)
simulation.step(steps)
with (options.output / "topology.pdb").open("w") as file:
    state = simulation.context.getState(positions=True)
    app.PDBFile.writeFile(topology, state.getPositions(), file)

state = simulation.context.getState(positions=True, energy=True, forces=True)
atoms.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
atoms.calc = LKMCalculator(options.model, dtype="float64")  # one that remembers nothing
kilojoule = units.kJ / units.mol
energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * kilojoule
forces = state.getForces(asNumpy=True) / (unit.kilojoule_per_mole / unit.angstrom) * kilojoule
off = energy - atoms.get_potential_energy()
forces_off = np.abs(forces - atoms.get_forces()).max()
with log.open() as file:
    temperatures = [float(row["Temperature (K)"]) for row in csv.DictReader(file)]
half = np.mean(temperatures[steps // 2 :])
print(f"Platform {simulation.context.getPlatform().getName()}, {steps} steps")
print(f"Energy {energy:.6f} eV: {1000 * off:+.1e} meV from what ASE gets")
print(f"Largest difference of the forces: {1000 * forces_off:.1e} meV/Å")
print(f"Mean temperature of the second half: {half:.0f} K")
print(f"Trajectory and log: {options.output}/trajectory.dcd with topology.pdb, log.csv")
