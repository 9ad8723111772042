"""Plots of simulations."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..files import replacing

Values = NDArray[np.float64]


def plot_md(log: Path, picture: Path, title: str) -> None:
    """Plot temperature, energies, drift, pressure and volume against time from the log of a run.

    Quantities missing from the log and constant volumes are omitted.

    Args:
        log: Written by :class:`lkm_calc.md.Simulation`.
        picture: Output file; the suffix selects the format.
        title: Title of the plot.
    """
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}
    time = columns["time_ps"]
    drawn = {
        "drift_meV_per_atom": _draw_drift,
        "pressure_bar": _draw_pressure,
        "volume_A3": _draw_volume,
    }
    shown = [name for name in drawn if _is_shown(name, columns)]
    figure = Figure(figsize=(10, 5.4 + 1.8 * len(shown)), layout="constrained")
    panels = figure.subplots(2 + len(shown), 1, sharex=True)
    _draw_mean(panels[0], time, columns["temperature_K"], "K", ".0f", "C3")
    panels[0].set(ylabel="temperature, K", title=title)
    for name in ("total", "potential", "kinetic"):
        energy = columns[f"{name}_eV"]
        shift = 0.0 if name == "kinetic" else columns["potential_eV"].min()
        panels[1].plot(time, energy - shift, linewidth=0.7, label=name)
    panels[1].set(ylabel="energy, eV, relative to\nlowest potential energy")
    for axes, name in zip(panels[2:], shown, strict=True):
        drawn[name](axes, time, columns[name])
    panels[-1].set_xlabel("time, ps")
    for axes in panels:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        axes.grid(alpha=0.25)
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=140)


def _is_shown(name: str, columns: Mapping[str, Values]) -> bool:
    """Return whether a quantity is in the log and not a constant volume."""
    values = columns.get(name, np.array([np.nan]))
    changes = name != "volume_A3" or np.ptp(values) > 0
    return bool(np.isfinite(values).all() and changes)


def _draw_mean(
    axes: Axes, time: Values, values: Values, unit: str, digits: str, colour: str
) -> None:
    axes.plot(time, values, linewidth=0.7, color=colour)
    mean = values.mean()
    axes.axhline(mean, color="0.3", linewidth=1, label=f"mean {mean:{digits}} {unit}")


def _draw_drift(axes: Axes, time: Values, drift: Values) -> None:
    axes.plot(time, drift, linewidth=0.7, color="0.4", label="conserved energy")
    if len(time) > 1:
        slope, offset = np.polyfit(time, drift, 1)
        label = f"line fit:\n{slope:+.2g} meV/atom/ps"
        axes.plot(time, slope * time + offset, color="C3", label=label)
    axes.set(ylabel="drift, meV/atom")


def _draw_pressure(axes: Axes, time: Values, pressure: Values) -> None:
    _draw_mean(axes, time, pressure, "bar", ".4g", "C0")
    axes.set(ylabel="pressure, bar")


def _draw_volume(axes: Axes, time: Values, volume: Values) -> None:
    _draw_mean(axes, time, volume, "Å³", ".5g", "C2")
    axes.set(ylabel="volume, Å³")
