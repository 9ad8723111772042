"""Ethanol at its minimum: frequencies, zero-point energy, and a mode to look at.

Relaxes ethanol with the bundled model in float64 and takes the second derivatives of the energy by
automatic differentiation. Prints every frequency with the share of each element in the motion,
writes one mode as a trajectory, and plots the frequencies.

What you should see: six frequencies within 1 cm⁻¹ of zero (translation and rotation; some 10 cm⁻¹
with --quick, which relaxes less far), given with a minus where imaginary; two soft torsions between
200 and 300 cm⁻¹; C-C, C-O and bending modes up to 1500; five C-H stretches from 2850 to 3100; the
O-H stretch near 3700, which is nearly hydrogen's alone. The zero-point energy is 2.11 eV. They are
harmonic, so stretches come out above experiment.

    python md_examples/relax_and_vibrate.py             a few seconds
    python md_examples/relax_and_vibrate.py --mode 6    writes another mode, the softest
    python md_examples/relax_and_vibrate.py --quick     relaxes less far
"""

import argparse
from pathlib import Path

import numpy as np
from ase.build import molecule
from ase.io import write
from ase.optimize import BFGS
from matplotlib.figure import Figure

from lkm_calc import LKMCalculator
from lkm_calc.potential import vibrations

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="rmd17-ethanol", help="bundled name or model file")
parser.add_argument("--mode", type=int, default=-1, help="number of the mode to write, from 0")
parser.add_argument("--output", type=Path, default=Path("runs/relax_and_vibrate"), help="folder")
parser.add_argument("--quick", action="store_true", help="relax to 0.005 instead of 0.0001 eV/Å")
options = parser.parse_args()
options.output.mkdir(parents=True, exist_ok=True)

atoms = molecule("CH3CH2OH")
atoms.calc = LKMCalculator(options.model, dtype="float64")
relaxation = BFGS(atoms, logfile=None)
if not relaxation.run(fmax=0.005 if options.quick else 0.0001, steps=200):
    raise SystemExit("The relaxation did not converge: is the model one for ethanol?")
write(options.output / "relaxed.xyz", atoms)

found = vibrations(atoms)
energies, modes = found.get_energies_and_modes(all_atoms=True)  # eV; (modes, atoms, 3)
wavenumbers = found.get_frequencies()  # cm⁻¹, imaginary for negative curvature
signed = np.where(np.abs(wavenumbers.imag) > 0, -np.abs(wavenumbers), wavenumbers.real)

# The kinetic energy of a mode is divided among the atoms as mass times square displacement.
kinetic = atoms.get_masses()[:, None] * modes**2
shares = kinetic.sum(2) / kinetic.sum((1, 2))[:, None]
elements = sorted(set(atoms.symbols))
by_element = {e: shares[:, [s == e for s in atoms.symbols]].sum(1) for e in elements}

print(f"Relaxed in {relaxation.nsteps} steps to {atoms.get_potential_energy():.4f} eV")
print("mode   cm^-1  " + "  ".join(f"% {e}" for e in elements) + "   share of the motion")
for number, wavenumber in enumerate(signed):
    row = "  ".join(f"{100 * by_element[e][number]:3.0f}" for e in elements)
    print(f"{number:4d} {wavenumber:z7.1f}  {row}")
print("(below zero: imaginary)")
print(f"Zero-point energy: {found.get_zero_point_energy():.4f} eV")

# The largest displacement is half an Å, more than at room temperature, to be seen well.
mode = modes[options.mode]
swing = 0.5 / np.linalg.norm(mode, axis=1).max() * np.sin(np.linspace(0, 2 * np.pi, 30, False))
frames = []
for amplitude in swing:
    frame = atoms.copy()
    frame.positions += amplitude * mode
    frames.append(frame)
write(options.output / "mode.xyz", frames)

figure = Figure(figsize=(9, 4.6), layout="constrained")
axes = figure.subplots()
top = np.zeros(len(signed))
for element in elements:
    height = signed * by_element[element]
    colour = {"H": "0.75", "C": "0.25", "O": "C3"}.get(element)
    axes.bar(range(len(signed)), height, bottom=top, label=element, color=colour)
    top += height
for number, wavenumber in enumerate(signed):
    axes.annotate(
        f"{wavenumber:z.0f}",
        (number, max(wavenumber, 0) + 30),
        ha="center",
        rotation=90,
        fontsize=8,
    )
axes.set(
    xlabel="mode",
    ylabel="frequency, cm$^{-1}$",
    ylim=(min(-100, signed.min()), 1.1 * signed.max()),
    title=f"Vibrations of ethanol, {options.model}; colours: who moves, by kinetic energy",
)
axes.legend(loc="upper left", title="element")
figure.savefig(options.output / "frequencies.png", dpi=140)

print(
    f"Mode {options.mode % len(signed)} of {signed[options.mode]:.0f} cm^-1 as trajectory: "
    f"{options.output}/mode.xyz (look at it with: ase gui FILE)   "
    f"Picture: {options.output}/frequencies.png"
)
