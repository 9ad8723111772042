"""Pictures of a run: learning curves and parity of energies and forces."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lkm_calc.atomic import replacing

from .evaluate import Errors, Predictions

MAX_POINTS = 20_000
"""Points drawn in a parity plot; more make it slow and no clearer."""


def plot_learning_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw validation errors, losses and learning rate against the epoch."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    measured = [row for row in rows if "validation_force_mae" in row]
    epochs = [row["epoch"] for row in measured]
    left.plot(epochs, [row["validation_force_mae"] for row in measured], label="forces, meV/Å")
    left.plot(epochs, [row["validation_energy_mae"] for row in measured], label="energy, meV")
    left.set(title="Validation MAE", xlabel="epoch", yscale="log")
    left.legend(frameon=False)
    epochs = [row["epoch"] for row in rows]
    for name, label in (("forces", "forces"), ("energy", "energy"), ("lkm", r"$L_{KD}$")):
        middle.plot(epochs, [row[f"train_{name}"] for row in rows], label=label)
    middle.set(title="Training loss, unweighted parts", xlabel="epoch", yscale="log")
    middle.legend(frameon=False)
    right.plot(epochs, [row["learning_rate"] for row in rows], color="0.3")
    right.set(title="Learning rate", xlabel="epoch")
    for axes in (left, middle, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    _save(figure, path)


def plot_parity(predictions: Predictions, errors: Errors, title: str, path: Path) -> None:
    """Draw predicted against reference energies (about their mean) and forces."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    mean = predictions.energies.mean()
    _parity(left, predictions.energies - mean, predictions.predicted_energies - mean)
    left.set(
        title=f"Energy: MAE {errors.energy_mae:.2f} meV",
        xlabel="reference, eV from the mean",
        ylabel="predicted",
    )
    _parity(right, predictions.forces.flatten(), predictions.predicted_forces.flatten())
    right.set(
        title=f"Forces: MAE {errors.force_mae:.1f} meV/Å",
        xlabel="reference, eV/Å",
        ylabel="predicted",
    )
    figure.suptitle(title)
    _save(figure, path)


def _parity(axes: Axes, reference: Tensor, predicted: Tensor) -> None:
    """Scatter one quantity with the diagonal."""
    stride = -(-len(reference) // MAX_POINTS)
    x, y = reference[::stride], predicted[::stride]
    low, high = float(reference.min()), float(reference.max())
    axes.plot([low, high], [low, high], color="0.6", linewidth=1, zorder=0)
    axes.scatter(x, y, s=4, alpha=0.3, linewidths=0, rasterized=True)
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.25)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=140)
