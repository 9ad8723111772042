"""Pictures of simulations."""

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .atomic import replacing


def plot_md(log: Path, picture: Path, title: str) -> None:
    """Draw temperature, energies and drift over time from the log of a run.

    Args:
        log: Written by :class:`lkm_calc.md.Simulation`.
        picture: Where to write; the suffix says in which format.
        title: Heading.
    """
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}
    time, drift = columns["time_ps"], columns["drift_meV_per_atom"]
    drifting = bool(np.isfinite(drift).all())
    figure = Figure(figsize=(10, 7.2 if drifting else 5.4), layout="constrained")
    panels = figure.subplots(3 if drifting else 2, 1, sharex=True)
    kelvin = columns["temperature_K"]
    panels[0].plot(time, kelvin, linewidth=0.7, color="C3")
    panels[0].axhline(kelvin.mean(), color="0.3", linewidth=1, label=f"mean {kelvin.mean():.0f} K")
    panels[0].set(ylabel="temperature, K", title=title)
    for name in ("total", "potential", "kinetic"):
        energy = columns[f"{name}_eV"]
        shift = 0.0 if name == "kinetic" else columns["potential_eV"].min()
        panels[1].plot(time, energy - shift, linewidth=0.7, label=name)
    panels[1].set(ylabel="energy, eV, from the\nlowest potential energy")
    if drifting:
        panels[2].plot(time, drift, linewidth=0.7, color="0.4", label="conserved energy")
        if len(time) > 1:
            slope, offset = np.polyfit(time, drift, 1)
            label = f"line fit:\n{slope:+.2g} meV/atom/ps"
            panels[2].plot(time, slope * time + offset, color="C3", label=label)
        panels[2].set(ylabel="drift, meV/atom")
    panels[-1].set_xlabel("time, ps")
    for axes in panels:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        axes.grid(alpha=0.25)
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=140)
