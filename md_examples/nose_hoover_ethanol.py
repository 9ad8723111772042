"""Ethanol with a Nosé-Hoover chain: does the temperature follow the canonical distribution?

Relaxes ethanol with the bundled model and runs it at 300 K with a chain of thermostats, which is
deterministic, without random forces. The kinetic energy of g degrees of freedom in the canonical
ensemble follows a gamma distribution of shape g/2 and mean g/2·kT; here g is 21, the 27 of ethanol
minus translation and rotation, which remain zero.

What you should see: a histogram that follows the curve, skewed towards high temperatures, with a
mean of 300 K and a standard deviation of 300·√(2/21) = 93 K, which is expected for such a small
molecule. The conserved quantity, the energy of molecule and chain, drifts by some
0.002 meV/atom/ps. The uncertainty of the mean is 7 K for 20 ps, and the histogram of --quick is
noisy, because successive values are correlated.

    python md_examples/nose_hoover_ethanol.py             20 ps, five to seven minutes on one core
    python md_examples/nose_hoover_ethanol.py --ps 50     continues the run
    python md_examples/nose_hoover_ethanol.py --quick     0.5 ps
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from ase.build import molecule
from ase.optimize import BFGS
from matplotlib.figure import Figure
from scipy.stats import gamma

from lkm_calc import LKMCalculator
from lkm_calc.md import MDSettings, Simulation

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", default="rmd17-ethanol", help="bundled name or model file")
parser.add_argument("--ps", type=float, default=20.0, help="length of the run, in all")
parser.add_argument("--temperature", type=float, default=300.0, help="in K")
parser.add_argument("--step", type=float, default=0.5, help="time step in fs")
parser.add_argument("--damping", type=float, default=50.0, help="time constant of the chain, fs")
parser.add_argument("--seed", type=int, default=0, help="of the first velocities")
parser.add_argument("--output", type=Path, default=Path("runs/nose_hoover_ethanol"), help="folder")
parser.add_argument("--quick", action="store_true", help="0.5 ps")
options = parser.parse_args()
steps = round((0.5 if options.quick else options.ps) * 1000 / options.step)

atoms = molecule("CH3CH2OH")
atoms.calc = LKMCalculator(options.model, dtype="float64")
if not BFGS(atoms, logfile=None).run(fmax=0.01, steps=300):
    raise SystemExit("The relaxation did not converge: is the model one for ethanol?")

# Where the folder holds a run, it is continued, and what follows here is not used again.
settings = MDSettings(
    ensemble="nose-hoover",
    temperature=options.temperature,
    timestep=options.step,
    damping=options.damping,
    initial_temperature=2 * options.temperature,  # half of it goes into the vibrations at once
    seed=options.seed,
    log_every=2,
)
simulation = Simulation(atoms, settings, options.output, identity={"model": options.model})
if simulation.resumed:
    print(f"Going on from step {simulation.step} of {options.output}")
if not simulation.run(steps):
    raise SystemExit("Stopped. Run the same command to continue.")

with simulation.record.log.open(newline="") as file:
    rows = list(csv.DictReader(file))
time, kelvin, drift = (
    np.array([float(row[name]) for row in rows])
    for name in ("time_ps", "temperature_K", "drift_meV_per_atom")
)
slope = np.polyfit(time, drift, 1)[0]
settled = kelvin[time > min(1.0, time[-1] / 5)]  # without the start
free = simulation.degrees_of_freedom
# A temperature is twice a kinetic energy over g·k, so it follows the same law.
canonical = gamma(free / 2, scale=2 * options.temperature / free)
# The mean of correlated values is as uncertain as the means of 10 long blocks make it.
blocks = [block.mean() for block in np.array_split(settled, 10)]
error = np.std(blocks, ddof=1) / len(blocks) ** 0.5

figure = Figure(figsize=(9, 6), layout="constrained")
top, bottom = figure.subplots(2, 1, height_ratios=(1, 2))
top.plot(time, kelvin, linewidth=0.3, color="C0")
top.axhline(options.temperature, color="C3", linewidth=1)
top.set(xlabel="time, ps", ylabel="temperature, K", xlim=(0, time[-1]))
top.set_title(f"Ethanol, Nosé-Hoover chain, {options.temperature:g} K, {options.model}")
grid = np.linspace(0, canonical.ppf(0.9999), 200)
bins = np.linspace(0, grid[-1], 41)
bottom.hist(settled, bins, density=True, color="C0", alpha=0.5, label=f"{time[-1]:g} ps of MD")
bottom.plot(grid, canonical.pdf(grid), color="C3", label=f"canonical, {free} degrees of freedom")
bottom.set(xlabel="temperature, K", ylabel="density, 1/K", xlim=(0, grid[-1]))
bottom.legend()
figure.savefig(options.output / "temperature.png", dpi=140)

print(
    f"Temperature: mean {settled.mean():.0f} ± {error:.0f} K, canonical {canonical.mean():.0f}; "
    f"standard deviation {settled.std():.0f} K, canonical {canonical.std():.0f}"
)
quantiles = (0.05, 0.5, 0.95)
found = ", ".join(f"{value:.0f}" for value in np.quantile(settled, quantiles))
expected = ", ".join(f"{value:.0f}" for value in canonical.ppf(quantiles))
print(f"5 %, 50 % and 95 % lie below {found} K; canonical {expected} K")
print(f"Conserved energy: drift {slope:+.2e} meV/atom/ps")
print(f"Trajectory, log and picture: {options.output}/trajectory.traj, log.csv, temperature.png")
