"""Turn the hydroxyl group of ethanol: minima and barriers of the torsion H-O-C-C.

Holds the dihedral angle at values over a full turn with ASE's FixInternals and relaxes all else
with the bundled model in float64. A periodic spline through the energies gives minima and barriers.

What you should see: three minima, trans at 180° and two gauche near ±61° that mirror each other;
barriers of 66 meV between gauche and trans and of 69 meV between the two gauche, from gauche.
Trans lies 17 meV above gauche. That is what PBE/def2-SVP says, which the model was trained on; in
microwave spectra trans is the lower one, by 5 meV. A force field is no better than its labels.

    python md_examples/dihedral_scan_ethanol.py             every 10°, half a minute
    python md_examples/dihedral_scan_ethanol.py --quick     every 30°, relaxed less far
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from ase import units
from ase.build import molecule
from ase.constraints import FixInternals
from ase.io import write
from ase.optimize import BFGS
from matplotlib.figure import Figure
from scipy.interpolate import CubicSpline
from tqdm import tqdm

from lkm_calc import LKMCalculator

DIHEDRAL = [0, 1, 2, 3]  # C-C-O-H in ASE's ethanol, the same angle as H-O-C-C
KCAL = 1000 * units.kcal / units.mol  # meV in a kcal/mol

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="rmd17-ethanol", help="bundled name or model file")
parser.add_argument("--every", type=float, default=10.0, help="degrees between points")
parser.add_argument("--fmax", type=float, default=0.002, help="largest force that is left, eV/Å")
parser.add_argument("--output", type=Path, default=Path("runs/dihedral_scan"), help="folder")
parser.add_argument("--quick", action="store_true", help="every 30 degrees, to 0.01 eV/Å")
options = parser.parse_args()
if options.quick:
    options.every, options.fmax = 30.0, 0.01
options.output.mkdir(parents=True, exist_ok=True)

atoms = molecule("CH3CH2OH")
atoms.calc = LKMCalculator(options.model, dtype="float64")
angles = np.arange(-90.0, 270.0, options.every)  # minima and barriers are inside, none at an end
energies, frames = [], []
for angle in tqdm(angles, unit="angle"):  # each starts from the one before
    atoms.set_constraint()
    atoms.set_dihedral(*DIHEDRAL, angle, indices=[DIHEDRAL[-1]])
    atoms.set_constraint(FixInternals(dihedrals_deg=[[angle, DIHEDRAL]]))
    if not BFGS(atoms, logfile=None).run(fmax=options.fmax, steps=300):
        raise SystemExit(f"No convergence at {angle:g} degrees: is the model one for ethanol?")
    energies.append(1000 * atoms.get_potential_energy())  # meV
    frames.append(atoms.copy())
write(options.output / "scan.xyz", frames)

closed = np.append(energies, energies[0])
curve = CubicSpline(np.append(angles, 270.0), closed, bc_type="periodic")
stationary = curve.derivative().roots(extrapolate=False)
kinds = ["minimum" if curve(angle, 2) > 0 else "barrier" for angle in stationary]
lowest = curve(stationary).min()

with (options.output / "scan.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["dihedral_degrees", "energy_meV"])
    writer.writerows(
        (angle, energy - lowest) for angle, energy in zip(angles, energies, strict=True)
    )

print("degrees   meV  kcal/mol  above the lowest minimum")
for angle, kind in zip(stationary, kinds, strict=True):
    height = curve(angle) - lowest
    print(f"{angle:7.1f} {height:5.1f} {height / KCAL:9.3f}  {kind}")

figure = Figure(figsize=(8, 4.6), layout="constrained")
axes = figure.subplots()
grid = np.linspace(-90, 270, 361)
axes.plot(grid, curve(grid) - lowest, color="C0")
axes.plot(angles, np.subtract(energies, lowest), "o", color="C0", markersize=4)
for angle in stationary:
    height = curve(angle) - lowest
    axes.annotate(f"{height:.0f}", (angle, height), (0, 5), textcoords="offset points", ha="center")
axes.set(
    xlabel="dihedral angle H-O-C-C, degrees",
    ylabel="energy above the lowest minimum, meV",
    xticks=range(-60, 271, 60),
    xlim=(-90, 270),
    ylim=(-3, 1.12 * np.ptp(energies)),
    title=f"Torsion of the hydroxyl group of ethanol, {options.model}",
)
right = axes.secondary_yaxis("right", (lambda y: y / KCAL, lambda y: y * KCAL))
right.set_ylabel("kcal/mol")
figure.savefig(options.output / "scan.png", dpi=140)
print(f"Structures, energies and picture: {options.output}/scan.xyz, scan.csv, scan.png")
