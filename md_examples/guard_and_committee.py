"""Heat ethanol from 300 K to 3000 K: when do the guards detect extrapolation?

Langevin dynamics with increasing temperature, twice with the same random numbers: first with
on_extrapolation="warn", to show all warnings, then with "stop", which ends the simulation at the
first structure outside the training distribution (ethanol at 500 K).

What you should see: no warnings up to some 1000 K; then the latent distance of an atom occasionally
exceeds the threshold, more often as the temperature rises. The first warning comes hundreds of fs
before the molecule dissociates, at about 2300 K (with --quick it does not). The dissociation is a
failure of the model: the real molecule is stable for longer.

With several models, the spread of their forces is monitored instead of the latent distance:

    lkm-train fit ethanol-gfn2 --data md_examples/ethanol_gfn2.h5 --members 4
    python md_examples/guard_and_committee.py --models runs/ethanol-gfn2/member-*/model.safetensors

Limits: the guard of a single model measures the distance from the training frames, not the force
error, and misses structures whose embeddings resemble those of training frames. A committee misses
errors common to all members. Both thresholds are derived from the errors of the models, so poorly
trained models warn late: with three models trained for 6 epochs, a bond stretched to twice its
length without a warning.

    python md_examples/guard_and_committee.py             2 ps, a minute
    python md_examples/guard_and_committee.py --quick     0.4 ps, less than half a minute
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.io import write
from ase.md import thermalize_momenta
from ase.md.langevin import Langevin
from ase.neighborlist import natural_cutoffs
from ase.optimize import BFGS
from matplotlib.figure import Figure
from tqdm import tqdm

from lkm_calc import ExtrapolationError, ExtrapolationWarning, LKMCalculator, Thresholds
from lkm_calc.uncertainty import calibration_of

LABELS = {
    "closest": "threshold / closest pair",
    "latent_distance": "distance of the embeddings / threshold",
    "force_spread": "spread of the committee's forces / threshold",
}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--models", nargs="+", default=["rmd17-ethanol"], help="several: a committee")
parser.add_argument("--ps", type=float, default=2.0, help="length of the heating")
parser.add_argument("--to", type=float, default=3000.0, metavar="K", help="temperature at the end")
parser.add_argument("--seed", type=int, default=0, help="of velocities and random forces")
parser.add_argument("--output", type=Path, default=Path("runs/guard"), help="folder")
parser.add_argument("--quick", action="store_true", help="0.4 ps")
options = parser.parse_args()
steps = round((0.4 if options.quick else options.ps) * 2000)
options.output.mkdir(parents=True, exist_ok=True)

start = molecule("CH3CH2OH")
start.calc = LKMCalculator(options.models)
if not BFGS(start, logfile=None).run(fmax=0.02, steps=300):
    raise SystemExit("The relaxation did not converge: are the models ones for ethanol?")
near = np.array(natural_cutoffs(start))
bonded = np.triu(start.get_all_distances() < 1.25 * (near + near[:, None]), 1)


def heat(action: str) -> Iterator[tuple[Atoms, float]]:
    """Make a step at a time; the temperature of the bath rises from 300 K. Yields it, and time."""
    atoms = start.copy()
    atoms.calc = LKMCalculator(options.models, on_extrapolation=action)
    rng = np.random.default_rng(options.seed)
    thermalize_momenta(atoms, 600, rng=rng)  # half of it goes into the vibrations at once
    step, friction = 0.5 * units.fs, 0.01 / units.fs
    dynamics = Langevin(atoms, step, temperature_K=300, friction=friction, fixcm=False, rng=rng)
    for _ in tqdm(dynamics.irun(steps), action, total=steps + 1, unit="step"):
        kelvin = 300 + (options.to - 300) * dynamics.nsteps / steps
        dynamics.set_temperature(temperature_K=kelvin)
        yield atoms, dynamics.get_time() / units.fs


def ratios(atoms: Atoms) -> dict[str, float]:
    """Return each measure over the threshold from which the guard speaks."""
    models, extras, limits = atoms.calc.models, atoms.calc.extras, Thresholds()
    known = [calibration_of(model) for model in models]
    distances = atoms.get_all_distances() + 1e9 * np.eye(len(atoms))
    table = np.max([one.closest_table() for one in known], axis=0)
    closest = limits.closest * table[np.ix_(atoms.numbers, atoms.numbers)]
    found = {"closest": (closest / distances).max()}
    if len(models) > 1:
        usual = np.mean([one.force_error["99.9"] for one in known])
        found["force_spread"] = extras["force_spread"].max() / usual
    else:
        found["latent_distance"] = extras["latent_distance"].max() / limits.latent_distance
    return found


rows, flagged, broken = [], {}, None
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always", ExtrapolationWarning)
    for atoms, time in heat("warn"):
        rows.append({"time": time, "temperature": atoms.get_temperature(), **ratios(atoms)})
        if news := atoms.calc.guard.counts.keys() - flagged.keys():
            flagged |= dict.fromkeys(news, time)
            tqdm.write(f"{time:.1f} fs: {heard[-1].message}")
        stretch = (atoms.get_all_distances()[bonded] / start.get_all_distances()[bonded]).max()
        if stretch > 2:
            broken = time
            tqdm.write(f"{time:.1f} fs: a bond is twice as long as at first")
            break
print(f"Outside in {dict(atoms.calc.guard.counts)} of {len(rows)} steps")

last = None
try:
    for _, time in heat("stop"):
        last = time
    print("Nothing was outside, so nothing was stopped.")
except ExtrapolationError as error:
    write(options.output / "refused.xyz", error.atoms)
    measures = " and ".join(excess.measure for excess in error.excesses)
    when = "at the start" if last is None else f"after {last:.1f} fs"
    print(f"Stopped {when} by {measures}: {options.output}/refused.xyz")

time = np.array([row["time"] for row in rows])
figure = Figure(figsize=(9, 6), layout="constrained")
top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
top.plot(time, [row["temperature"] for row in rows], linewidth=0.7, color="0.4")
top.plot([0, steps / 2], [300, options.to], ":", color="0.2", label="of the bath")
top.set(ylabel="temperature, K", title="Ethanol, heated until its model fails")
top.legend(loc="upper left")
for colour, (measure, label) in enumerate(LABELS.items()):
    if measure in rows[0]:
        values = [row[measure] for row in rows]
        bottom.semilogy(time, values, linewidth=0.8, color=f"C{colour}", label=label)
        if measure in flagged:
            bottom.axvline(flagged[measure], color=f"C{colour}", linestyle="--", linewidth=1)
if broken is not None:
    bottom.axvline(broken, color="black", label="a bond is twice as long")
bottom.axhline(1, color="C3", linewidth=1)
bottom.set(xlabel="time, fs", ylabel="measure / threshold", xlim=(0, 1.02 * time[-1]))
bottom.legend(loc="upper left")
figure.savefig(options.output / "guard.png", dpi=140)
print(f"Picture: {options.output}/guard.png")
