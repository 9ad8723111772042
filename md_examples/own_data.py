"""From your own labelled frames to MD with your own force field, in one script.

Uses frames with energies and forces, here ethanol_gfn2.h5 as an example, and prints and runs the
commands that you would type: check the data, train, evaluate on held-out test frames, and simulate
with the guard. Use --data for your own frames, in any file that ASE reads (extended XYZ,
trajectories, outputs of codes).

What you should see: no errors in the data; mean errors on the test frames of 2.5 meV and 13 meV/Å
(with --quick some 70 meV/Å); a simulation at some 300 K without extrapolation warnings. Structures
outside the training distribution would be written to extrapolation.extxyz: label them, add them to
your frames and train again, as active_learning.py does.

    python md_examples/own_data.py                            three minutes on one core
    python md_examples/own_data.py --data frames.extxyz       your own
    python md_examples/own_data.py --quick                    150 frames, a small model, 20 s
"""

import argparse
import shlex
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.optimize import BFGS
from lkm_train.__main__ import main
from lkm_train.formats import read_hdf5

from lkm_calc import LKMCalculator
from lkm_calc.md import MDError, MDSettings, Simulation, plot_md

STAND_IN = Path(__file__).parent / "ethanol_gfn2.h5"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", type=Path, help="labelled frames that ASE reads, in eV and Å")
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--width", type=int, default=32, help="channels of the model")
parser.add_argument("--ps", type=float, default=2.0, help="length of the simulation")
parser.add_argument("--temperature", type=float, default=300.0, help="in K")
parser.add_argument("--output", type=Path, default=Path("runs/own_data"), help="new folder")
parser.add_argument("--quick", action="store_true", help="150 frames, a small model, 50 fs")
options = parser.parse_args()
if options.quick:
    options.epochs, options.width, options.ps = 12, 16, 0.05
if options.output.exists():
    parser.error(f"{options.output} exists; remove it or name another folder with --output")
options.output.mkdir(parents=True)


def lkm_train(*words: str | Path) -> None:
    """Do what the command lkm-train does, and say so."""
    print(f"\n$ {shlex.join(['lkm-train', *map(str, words)])}", flush=True)
    if status := main(list(map(str, words))):
        raise SystemExit(f"lkm-train {words[0]} ended with status {status}; see above.")


def stand_in() -> list[Atoms]:
    """Return the frames that come along, as ASE keeps labels: in eV and eV/Å."""
    known, found = read_hdf5(STAND_IN), []
    for energy, first, end in zip(known.energies, known.starts, known.starts[1:], strict=False):
        frame = Atoms(known.numbers[first:end], known.positions[first:end])
        frame.calc = SinglePointCalculator(frame, energy=energy, forces=known.forces[first:end])
        found.append(frame)
    return found


# 1. A fifth for tests. Neighbouring frames of one simulation are nearly equal: then test rather on
# frames of another simulation than on a random choice.
frames = read(options.data, ":") if options.data else stand_in()
frames = frames[:150] if options.quick else frames
order = np.random.default_rng(0).permutation(len(frames))
n_test = len(frames) // 5
train, test = options.output / "train.extxyz", options.output / "test.extxyz"
write(test, [frames[i] for i in order[:n_test]])
write(train, [frames[i] for i in order[n_test:]])

# 2. Are the data sound? Exit status 1 tells of faults.
lkm_train("check-data", train)

# 3. Train: the file lists what differs from the defaults, which lkm-train fit --help prints.
run, toml = options.output / "run", options.output / "own.toml"
toml.write_text(
    f"""\
[data]
train = '{train}'

[model.hypers]
num_channels = {options.width}

[optimiser]
epochs = {options.epochs}
warmup_steps = 100
ema_decay = 0.99

[run]
directory = '{run}'
validate_every = 2
""",
    encoding="utf-8",
)
lkm_train("fit", toml)

# 4. How wrong is it on frames that it has not seen? MAE and RMSE in meV and meV/Å.
model = run / "model.safetensors"
lkm_train("evaluate", model, test)

# 5. Simulate from a relaxed structure, and keep what the model does not know.
atoms = min(frames, key=lambda frame: frame.get_potential_energy()).copy()
unknown = options.output / "extrapolation.extxyz"
calculator = LKMCalculator(model, on_extrapolation="save", extrapolation_file=unknown)
atoms.calc = calculator
if not BFGS(atoms, logfile=None).run(fmax=0.05, steps=200):
    raise SystemExit("The relaxation did not converge: more frames or epochs are needed.")
settings = MDSettings(
    temperature=options.temperature,
    initial_temperature=2 * options.temperature,  # half of it goes into the vibrations at once
)
simulation = Simulation(atoms, settings, options.output / "md")
try:
    simulation.run(round(options.ps * 1000 / settings.timestep))
except MDError as error:
    print(f"\nThe simulation went wrong: {error}")
picture = options.output / "md.png"
plot_md(simulation.record.log, picture, f"{atoms.get_chemical_formula()}, {model.name}")
outside = calculator.guard.counts
kept = len(read(unknown, ":")) if unknown.exists() else 0
print(f"\n{simulation.step} steps, outside the known in {outside or 'none'}; {kept} frames kept")
print(f"Parity plots: {run}/parity.png   MD: {simulation.record.folder}   Picture: {picture}")
