"""Distillation of a committee into a single model of any size.

With a few hundred labelled frames, accuracy is limited by the data more than by the size of the
model. The mean of several models is more accurate than each of them, and labels new structures at
little cost. The teachers

    simulate    Langevin dynamics with the first teacher, at the temperature of later simulations
    label       the structures with the mean of all teachers, except those on which they disagree

and a student is trained on these structures, and on the frames of the teachers if available; a few
of those are held out to calibrate the guards of the student. For your own molecule, specify model
files with --teachers and their training frames with --data.

What you should see: a student nearly as accurate as the mean of its teachers; results for ethanol
are in docs/howto/distillation.md.

    python md_examples/distil.py --teachers a.safetensors b.safetensors --data train.npz
    python md_examples/distil.py --quick          the bundled model teaches a tiny one, a minute
"""

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import read
from ase.optimize import BFGS
from lkm_train.__main__ import main as lkm_train
from lkm_train.config import read_config
from lkm_train.configs import CONFIGS
from lkm_train.data import Frames, random_split
from lkm_train.fit import fit
from lkm_train.formats import read_frames, write_hdf5

from lkm_calc import LKMCalculator
from lkm_calc.md import MDSettings, Simulation

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--teachers", nargs="+", default=["rmd17-ethanol"], help="models")
parser.add_argument("--data", type=Path, help="labelled frames of one molecule to learn as well")
parser.add_argument("--held-out", type=int, default=50, help="frames of them for the guards alone")
parser.add_argument("--test", type=Path, help="labelled frames for errors")
parser.add_argument("--frames", type=int, default=5000, help="structures to label")
parser.add_argument("--temperature", type=float, default=500.0, help="of the simulation, in K")
parser.add_argument("--every", type=int, default=20, help="steps of 0.5 fs between structures")
parser.add_argument(
    "--spread", type=float, default=0.5, help="of the teachers' forces on an atom, at most, eV/Å"
)
parser.add_argument("--label-only", action="store_true", help="write lesson.h5, and stop")
parser.add_argument("--finetune", help="model the student starts as; its size is then that one's")
parser.add_argument("--hidden", type=int, default=64, help="width of the student")
parser.add_argument("--blocks", type=int, default=3, help="interactions of the student")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--rate", type=float, default=4e-3, help="learning rate")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--compile", action="store_true", help="compile the training step; needs g++")
parser.add_argument("--output", type=Path, default=Path("runs/distil"), help="new folder")
parser.add_argument("--quick", action="store_true", help="100 structures, a tiny student")
options = parser.parse_args()
if options.quick:
    options.frames, options.hidden, options.blocks, options.epochs = 100, 16, 1, 3
if options.output.exists():
    parser.error(f"{options.output} exists; remove it or name another folder with --output")
options.output.mkdir(parents=True)


def simulate(start: Atoms) -> list[Atoms]:
    """Return structures of a simulation with the first teacher."""
    start.calc = LKMCalculator(options.teachers[0])
    BFGS(start, logfile=None).run(fmax=0.05, steps=200)
    settings = MDSettings(
        temperature=options.temperature,
        initial_temperature=2 * options.temperature,  # half of it goes into the vibrations at once
        frame_every=options.every,
        seed=options.seed,
    )
    simulation = Simulation(start, settings, options.output / "md")
    # The first tenth only warms up.
    if not simulation.run(options.every * (options.frames + options.frames // 10)):
        raise SystemExit("Stopped.")
    return read(simulation.record.folder / settings.trajectory, f"{-options.frames}:")


def label(structures: list[Atoms]) -> Frames:
    """Return the structures on which the teachers agree, with the mean of their labels."""
    kept = []
    for atoms, (results, extras) in zip(
        structures, teachers.iterate(structures, progress=True), strict=True
    ):
        if len(options.teachers) == 1 or extras["force_spread"].max() <= options.spread:
            kept.append((atoms.positions, results["energy"], results["forces"]))
    print(f"The teachers agree on {len(kept)} of {len(structures)} structures.")
    if not kept:
        raise SystemExit("None is left to learn: raise --spread, or train the teachers longer.")
    positions, energies, forces = (np.array(values) for values in zip(*kept, strict=True))
    return Frames.of_one_molecule(structures[0].numbers, positions, energies, forces)


def joined(first: Frames, second: Frames) -> Frames:
    """Return the frames of both, which are of one molecule."""
    numbers = first.numbers[: first.starts[1]]
    parts = [
        (f.positions.reshape(len(f), -1, 3), f.energies, f.forces.reshape(len(f), -1, 3))
        for f in (first, second)
    ]
    return Frames.of_one_molecule(numbers, *map(np.concatenate, zip(*parts, strict=True)))


def report(name: str, calculator: LKMCalculator) -> None:
    """Print the mean absolute error of the forces on the test frames."""
    test = read_frames(options.test)
    structures = [
        Atoms(test.numbers[first:end], test.positions[first:end])
        for first, end in zip(test.starts, test.starts[1:], strict=False)
    ]
    found = np.concatenate([one["forces"] for one in calculator.evaluate(structures)])
    print(f"{name}: force MAE {1000 * np.abs(found - test.forces).mean():.2f} meV/Å")


teachers = LKMCalculator(options.teachers)
known = read_frames(options.data) if options.data else None
if known is None:
    first = molecule("CH3CH2OH")
else:
    size = known.starts[1]
    if not (known.numbers.reshape(len(known), -1) == known.numbers[:size]).all():
        parser.error(f"{options.data} holds several molecules, or one with atoms in several orders")
    first = Atoms(known.numbers[:size], known.positions[:size])

lesson = label(simulate(first))
held_out = options.output / "held_out.h5"
if known is not None:
    # With the teachers' seed and numbers of frames these are those that they did not learn either.
    split = random_split(len(known), len(known) - options.held_out, options.held_out, options.seed)
    write_hdf5(known.select(split.validation), held_out)
    lesson = joined(known.select(split.train), lesson)
file = options.output / "lesson.h5"
write_hdf5(lesson, file, f"labelled by {', '.join(map(str, options.teachers))}")
print(f"{len(lesson)} frames to learn: {file}")
if options.label_only:
    raise SystemExit

n_validation = len(lesson) // 20
values = {
    "data.train": file,
    "data.n_train": len(lesson) - n_validation,
    "data.n_validation": n_validation,
    "model.hypers.hidden": options.hidden,
    "model.hypers.num_blocks": options.blocks,
    "model.hypers.triplet_dim": options.hidden // 2,
    "model.hypers.output_dim": options.hidden,
    "optimiser.epochs": options.epochs,
    "optimiser.learning_rate": options.rate,
    "optimiser.warmup_steps": min(1000, len(lesson) * options.epochs // 50),
    "run.compile": str(options.compile).lower(),
    "run.seed": options.seed,
    "run.finetune": options.finetune or "",
    "run.directory": options.output / "student",
}
words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
if fit(read_config(CONFIGS / "rmd17-dimenet.toml", words)) is None:
    raise SystemExit("Stopped.")
student = options.output / "student" / "model.safetensors"
if known is not None:
    # Its errors are those of labels, not the small ones of teachers' labels that it was given.
    lkm_train(["calibrate", str(student), str(held_out), "--train", str(file)])
if options.test:
    for name in options.teachers if len(options.teachers) > 1 else ():
        report(name, LKMCalculator(name))
    report("teachers", teachers)
    report("student", LKMCalculator(student))
print(f"The student is {student}")
