"""Chignolin, a protein of ten residues, at 300 K from its PDB structure: is it stable?

Relaxes the structure, runs Langevin dynamics, and monitors the RMSD of the backbone (N, CA, C) from
the start after superposition, the radius of gyration and the end-to-end distance.

The structure is that of CLN025, 166 atoms with hydrogens: entry 5AWL of the Protein Data Bank, with
hydrogens added by a program such as PDBFixer or reduce, or the file from the examples of
torchmd-net. The bundled model was trained on GFN2-xTB with implicit water.

What you should see in 1 ps: 300 K after some tenths of a ps, all 171 bonds intact, the backbone
within 0.5 Å of the start, a radius of gyration of 6.0 to 6.2 Å and an end-to-end distance of 3.7
to 4.2 Å. A hairpin takes far longer to unfold; unfolding or a broken bond on this time scale
indicates that the model needs more training data.

    python md_examples/chignolin_300K.py --start cln025.pdb
    python md_examples/chignolin_300K.py ... --ps 10      continues the run
    python md_examples/chignolin_300K.py ... --compile    with the C++ kernel, five times as fast
    python md_examples/chignolin_300K.py ... --quick      50 fs, a quarter of a minute
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import minimize_rotation_and_translation
from ase.io import read, write
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import LBFGS
from matplotlib.figure import Figure
from tqdm import tqdm

from lkm_calc import LKMCalculator
from lkm_calc.md import MDSettings, Simulation

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--start", type=Path, required=True, help="PDB file with hydrogens")
parser.add_argument("--model", default="chignolin-gfn2", help="bundled name or model file")
parser.add_argument("--ps", type=float, default=1.0, help="length of the run, in all")
parser.add_argument("--temperature", type=float, default=300.0, help="in K")
parser.add_argument("--step", type=float, default=0.5, help="time step in fs")
parser.add_argument("--friction", type=float, default=0.01, help="in 1/fs")
parser.add_argument("--relax", type=int, default=200, metavar="STEPS", help="at most")
parser.add_argument("--seed", type=int, default=0, help="of velocities and random forces")
parser.add_argument("--output", type=Path, default=Path("runs/chignolin"), help="folder")
parser.add_argument("--compile", action="store_true", help="use the compiled C++ kernel")
parser.add_argument("--quick", action="store_true", help="50 fs after 30 steps of relaxation")
options = parser.parse_args()
if options.quick:
    options.ps, options.relax = 0.05, 30
options.output.mkdir(parents=True, exist_ok=True)


def bonds(atoms: Atoms) -> set[tuple[int, int]]:
    """Return the pairs closer than 1.3 times the sum of their covalent radii."""
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.3))
    return {(int(i), int(j)) for i, j in zip(first, second, strict=True) if i < j}


start = read(options.start, index=0)
names, residues = start.arrays["atomtypes"], start.arrays["residuenumbers"]
backbone = np.flatnonzero(np.isin(names, ["N", "CA", "C"]))
(first,) = np.flatnonzero((names == "N") & (residues == residues.min()))
(last,) = np.flatnonzero((names == "C") & (residues == residues.max()))

atoms = Atoms(start.numbers, start.positions)
atoms.calc = LKMCalculator(options.model, compile=options.compile)
relaxed = options.output / "relaxed.xyz"
if relaxed.exists():
    atoms.positions = read(relaxed).positions
else:
    with tqdm(total=options.relax, unit="step", desc="relaxing") as bar:
        search = LBFGS(atoms, logfile=None)
        search.attach(bar.update)
        search.run(fmax=0.1, steps=options.relax)
    write(relaxed, atoms)
largest = np.linalg.norm(atoms.get_forces(), axis=1).max()
print(f"Relaxed: largest force {largest:.2f} eV/Å")

# Where the folder holds a run, it is continued.
settings = MDSettings(
    temperature=options.temperature,
    initial_temperature=2 * options.temperature,  # half of it goes into the vibrations at once
    timestep=options.step,
    friction=options.friction,
    seed=options.seed,
    frame_every=10,
)
simulation = Simulation(atoms, settings, options.output, identity={"model": options.model})
if not simulation.run(round(options.ps * 1000 / options.step)):
    raise SystemExit("Stopped. Run the same command to continue.")


def measures(frame: Atoms) -> tuple[float, float, float]:
    """Return RMSD of the backbone from the start, radius of gyration, distance of the ends: Å."""
    target, moved = start[backbone], frame[backbone]
    minimize_rotation_and_translation(target, moved)
    rmsd = ((moved.positions - target.positions) ** 2).sum(1).mean() ** 0.5
    masses, centred = frame.get_masses(), frame.positions - frame.get_center_of_mass()
    gyration = (masses @ (centred**2).sum(1) / masses.sum()) ** 0.5
    return rmsd, gyration, frame.get_distance(first, last)


frames = read(simulation.record.trajectory, ":")
times = np.arange(len(frames)) * settings.frame_every * options.step / 1000  # ps
figures = [measures(frame) for frame in frames]
known = bonds(start)
broken = {pair for frame in frames for pair in known - bonds(frame)}
with simulation.record.log.open(newline="") as file:
    log = [(float(row["time_ps"]), float(row["temperature_K"])) for row in csv.DictReader(file)]

figure = Figure(figsize=(8, 7), layout="constrained")
top, *panels = figure.subplots(4, 1, sharex=True)
top.plot(*np.transpose(log), color="C3", linewidth=0.8)
top.axhline(options.temperature, color="0.4", linestyle=":")
top.set(
    ylabel="temperature, K",
    title=f"Chignolin, {options.temperature:g} K, {Path(options.model).name}",
)
labels = ("RMSD of the\nbackbone, Å", "radius of\ngyration, Å", "N to C end, Å")
for axes, label, values in zip(panels, labels, np.transpose(figures), strict=True):
    axes.plot(times, values)
    axes.set(ylabel=label)
    axes.grid(alpha=0.25)
panels[0].set_ylim(bottom=0)
panels[-1].set(xlabel="time, ps", xlim=(0, times[-1]))
figure.savefig(options.output / "chignolin.png", dpi=140)

half = np.array(log)[len(log) // 2 :, 1].mean()
print(f"Temperature of the second half: {half:.0f} K")
print("            RMSD, Å   gyration, Å   ends, Å")
for name, frame in (("PDB", start), ("relaxed", frames[0]), ("at the end", frames[-1])):
    print("{:10}{:9.2f}{:14.2f}{:10.2f}".format(name, *measures(frame)))
print(f"{len(broken)} of {len(known)} bonds broken in {times[-1]:g} ps")
for i, j in sorted(broken):
    print(f"  {names[i]} {residues[i]} and {names[j]} {residues[j]}")
print(f"Trajectory, log and picture: {options.output}/trajectory.traj, log.csv, chignolin.png")
