"""Plots of a run: learning curves, parity of energies and forces, errors by force magnitude."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.data.colors import jmol_colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lkm_calc.files import replacing

from .evaluate import Errors, Pair, Predictions

MAX_POINTS = 20_000
"""Maximum number of points in a parity plot."""

Rows = Sequence[Mapping[str, Any]]


def plot_learning_curves(rows: Rows, path: Path) -> None:
    """Plot validation errors, losses, statistics of the layers and learning rate by epoch."""
    figure = Figure(figsize=(14.5, 3.4), layout="constrained")
    errors, losses, layers, rate = figure.subplots(1, 4)
    labels = {"force_mae": "forces, meV/Å", "energy_mae": "energy, meV", "stress_mae": "stress"}
    _curves(errors, rows, {f"validation_{name}": text for name, text in labels.items()})
    errors.set(title="Validation MAE", yscale="log")
    parts = {"energy": "energy", "forces": "forces", "stress": "stress", "lkm": r"$L_{KD}$"}
    _curves(losses, rows, {f"train_{name}": text for name, text in parts.items()})
    losses.set(title="Training loss, unweighted parts", yscale="log")
    _curves(layers, rows, {"layers_norm": "size of embeddings", "layers_lkm": r"$L_{KD}$"})
    layers.set(title="Layers, validation", yscale="log")
    cosine = layers.twinx()
    _curves(cosine, rows, {"layers_cosine": "cosine between layers"}, color="0.4", linestyle=":")
    cosine.set_ylim(-1, 1.02)
    cosine.legend(handles=[*layers.lines, *cosine.lines], frameon=False, loc="center right")
    layers.legend().remove()
    _curves(rate, rows, {"learning_rate": ""}, color="0.3")
    rate.set(title="Learning rate")
    for axes in (errors, losses, layers, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    save_figure(figure, path)


def _curves(axes: Axes, rows: Rows, names: Mapping[str, str], **style: Any) -> None:
    """Plot the columns that exist and are not always zero."""
    for name, label in names.items():
        points = [(row["epoch"], row[name]) for row in rows if row.get(name)]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    if axes.lines and any(names.values()):
        axes.legend(frameon=False)


def plot_parity(predictions: Predictions, errors: Errors, title: str, path: Path) -> None:
    """Plot predicted against reference energies and forces, and force errors by magnitude.

    Forces are coloured by element; reference energies of the composition are subtracted.
    """
    panels = 1 if predictions.forces is None else 3
    figure = Figure(figsize=(4.2 * panels, 4.2), layout="constrained")
    energy, *others = figure.subplots(1, panels, squeeze=False)[0]
    bound = Pair(*(values - predictions.references for values in predictions.energies))
    _parity(energy, bound, "C0")
    energy.set(
        title=f"Energy: MAE {errors.energy_mae / 1000:.3g} {predictions.energy_unit}",
        xlabel=f"reference, {predictions.energy_unit}, without reference energies",
        ylabel="predicted",
    )
    if predictions.forces is not None:
        parity, by_size = others
        _force_panels(parity, by_size, predictions.forces, predictions.numbers)
        parity.set_title(f"Forces: MAE {errors.force_mae:.1f} meV/Å")
    figure.suptitle(title)
    save_figure(figure, path)


def _force_panels(parity: Axes, by_size: Axes, forces: Pair, numbers: Tensor) -> None:
    """Plot the parity of force components by element, and force errors by magnitude."""
    for number in numbers.unique().tolist():
        of_element = Pair(*(values[numbers == number].flatten() for values in forces))
        mae = 1000 * of_element.difference.abs().mean()
        label = f"{chemical_symbols[number]}: {mae:.1f} meV/Å"
        _parity(parity, of_element, 0.8 * jmol_colors[number], label)
    parity.set(xlabel="reference, eV/Å", ylabel="predicted")
    parity.legend(frameon=False, fontsize=8, markerscale=3)
    size = forces.labels.norm(dim=1).numpy()
    error = 1000 * forces.difference.norm(dim=1).numpy()
    order = np.argsort(size)
    bins = [b for b in np.array_split(order, min(20, len(order))) if len(b)]
    centres = [np.median(size[b]) for b in bins]
    for quantile, label in ((0.5, "median"), (0.95, "95 %"), (1.0, "worst")):
        by_size.plot(centres, [np.quantile(error[b], quantile) for b in bins], label=label)
    by_size.set(
        title="Error of the force vector",
        xlabel="magnitude of the reference force, eV/Å",
        ylabel="meV/Å",
        yscale="log",
    )
    by_size.legend(frameon=False)
    by_size.grid(alpha=0.25)


def _parity(axes: Axes, pair: Pair, colour: Any, label: str | None = None) -> None:
    """Draw a scatter plot of one quantity with the diagonal."""
    stride = -(-len(pair.labels) // MAX_POINTS)
    x, y = pair.labels[::stride], pair.predicted[::stride]
    low, high = float(pair.labels.min()), float(pair.labels.max())
    axes.plot([low, high], [low, high], color="0.6", linewidth=1, zorder=0)
    axes.scatter(x, y, s=4, alpha=0.3, linewidths=0, rasterized=True, color=colour, label=label)
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.25)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a file, atomically."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=140)
