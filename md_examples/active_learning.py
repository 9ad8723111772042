"""Active learning: find structures missing from the training set, label them and retrain.

Starts from a few frames of ethanol at 300 K to 800 K, labelled with GFN2-xTB, the lowest in energy
of ethanol_gfn2.h5. Then, in each round:

    train       a committee of small models with different random weights and training splits
    simulate    Langevin dynamics with the committee; on_extrapolation="save" writes structures for
                which the forces disagree, or with atoms closer than in the training set
    label       these structures with GFN2-xTB (pip install lkm-calc[label])

and trains and simulates once more at the end. For your own molecule, replace TBLite by your ASE
calculator and ethanol_gfn2.h5 by your frames.

What you should see: the first simulation is outside the training distribution in most steps, or
even ends early with a broken molecule; this becomes rarer after each round, and the errors on 100
high-temperature test frames decrease, especially the largest ones. A plot shows both.

    python md_examples/active_learning.py             3 rounds, about half an hour on two cores
    python md_examples/active_learning.py --quick     1 round, about a minute
"""

import argparse
import logging
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md import thermalize_momenta
from ase.md.langevin import Langevin
from lkm_train.config import read_config
from lkm_train.configs import CONFIGS
from lkm_train.fit import fit_members
from lkm_train.formats import read_hdf5
from matplotlib.figure import Figure
from tblite.ase import TBLite
from tqdm import tqdm

from lkm_calc import LKMCalculator, Thresholds

FRAMES = Path(__file__).parent / "ethanol_gfn2.h5"
TOO_FAR = 5.0
"""Spread of the forces in eV/Å at which a simulation is given up: the structures that follow are
no molecule any more, and not worth a label."""

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--members", type=int, default=3, help="models of the committee")
parser.add_argument("--start", type=int, default=40, help="frames to start with")
parser.add_argument("--epochs", type=int, default=200, help="of each training")
parser.add_argument("--width", type=int, default=32, help="channels of the models")
parser.add_argument("--ps", type=float, default=2.0, help="length of each simulation")
parser.add_argument("--temperature", type=float, default=800.0, help="in K")
parser.add_argument("--spread", type=float, default=0.3, help="of forces from which to save, eV/Å")
parser.add_argument("--most", type=int, default=60, help="structures to label in a round")
parser.add_argument("--output", type=Path, default=Path("runs/active_learning"), help="new folder")
parser.add_argument("--quick", action="store_true", help="1 round of small models")
options = parser.parse_args()
if options.quick:
    options.rounds, options.members, options.start, options.most = 1, 2, 25, 25
    options.epochs, options.width, options.ps = 40, 8, 0.1
if options.output.exists():
    parser.error(f"{options.output} exists; remove it or name another folder with --output")
options.output.mkdir(parents=True)


def labelled(atoms: Atoms, energy: float, forces: np.ndarray) -> Atoms:
    """Return a copy that holds energy (eV) and forces (eV/Å) as ASE's files keep them."""
    frame = Atoms(atoms.numbers, atoms.positions)
    frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces)
    return frame


def train(frames: list[Atoms], name: str) -> list[Path]:
    """Train a committee on four fifths of the frames, each member on others."""
    data = options.output / f"{name}.extxyz"
    write(data, frames)
    values = {
        "data.train": data,
        "data.n_train": len(frames) * 4 // 5,
        "data.n_validation": len(frames) - len(frames) * 4 // 5,
        "model.hypers.num_channels": options.width,
        "optimiser.epochs": options.epochs,
        "optimiser.warmup_steps": 50,
        "optimiser.ema_decay": 0.98,
        "run.validate_every": 10,
        "run.directory": options.output / name,
    }
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    models = fit_members(read_config(CONFIGS / "ethanol-gfn2.toml", words), options.members)
    if models is None:
        raise SystemExit("Stopped.")
    return models


def simulate(models: list[Path], name: str) -> list[Atoms]:
    """Run Langevin dynamics; return the structures that the guard kept."""
    file = options.output / f"{name}.extxyz"
    atoms = start.copy()
    atoms.calc = LKMCalculator(
        models,
        on_extrapolation="save",
        extrapolation_file=file,
        thresholds=Thresholds(force_spread=options.spread),
    )
    rng = np.random.default_rng(0)
    thermalize_momenta(atoms, options.temperature, rng=rng)
    dynamics = Langevin(
        atoms,
        0.5 * units.fs,
        temperature_K=options.temperature,
        friction=0.01 / units.fs,
        fixcm=False,
        rng=rng,
    )
    steps = round(options.ps * 2000)
    for _ in tqdm(dynamics.irun(steps), name, total=steps + 1):
        if atoms.calc.extras["force_spread"].max() > TOO_FAR:
            break
    time = dynamics.get_time() / (1000 * units.fs)
    print(f"{name}: {time:.3f} ps, outside in {atoms.calc.guard.counts or 'no'} steps", end="")
    kept = read(file, ":") if file.exists() else []
    print(f", {len(kept)} structures kept")
    return kept


def label(structures: list[Atoms]) -> list[Atoms]:
    """Compute energies and forces with GFN2-xTB, leaving out what it cannot compute."""
    frames = []
    for atoms in structures:
        atoms.calc = TBLite(method="GFN2-xTB", accuracy=0.01, verbosity=0)
        try:
            frames.append(labelled(atoms, atoms.get_potential_energy(), atoms.get_forces()))
        except CalculationFailed:
            print("A structure without a converged electron density is left out.")
    return frames


def force_errors(models: list[Path]) -> np.ndarray:
    """Return the size of the error of each atom's force on the test frames, eV/Å."""
    found = LKMCalculator(models).evaluate(test)
    pairs = zip(found, test, strict=True)
    differences = [one["forces"] - atoms.get_forces() for one, atoms in pairs]
    return np.linalg.norm(np.concatenate(differences), axis=1)


logging.getLogger("lkm_train").setLevel(logging.WARNING)
known = read_hdf5(FRAMES)
order = np.argsort(known.energies)
pool = [
    labelled(Atoms(known.numbers[rows], known.positions[rows]), energy, known.forces[rows])
    for energy, rows in (
        (known.energies[f], slice(known.starts[f], known.starts[f + 1])) for f in order
    )
]
data, test = pool[: options.start], pool[-100:]
start = data[0]

history = []
for k in range(options.rounds + 1):
    models = train(data, f"training-{k + 1}")
    errors = force_errors(models)
    history.append((len(data), errors))
    print(
        f"{len(data)} frames: force error on hot frames {1000 * errors.mean():.0f} meV/Å in the "
        f"mean, {1000 * np.quantile(errors, 0.99):.0f} at the 99 % quantile"
    )
    found = simulate(models, f"simulation-{k + 1}")
    if k < options.rounds:
        chosen = np.unique(np.linspace(0, len(found) - 1, options.most).round().astype(int))
        data = data + label([found[i] for i in chosen] if found else [])

figure = Figure(figsize=(6, 4), layout="constrained")
axes = figure.subplots()
for frames, errors in history:
    share = np.arange(len(errors), 0, -1) / len(errors)
    axes.loglog(1000 * np.sort(errors), share, label=f"{frames} frames")
axes.set(
    xlabel="force error x on hot frames, meV/Å", ylabel="share of atoms with a larger error than x"
)
axes.legend(title="trained on")
figure.savefig(options.output / "active_learning.png", dpi=120)
print(f"Picture, models and frames: {options.output}")
