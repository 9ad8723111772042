"""Smoothness of energy and force at the cut-offs: published formulas versus those of lkm-calc.

For MXMNet and PAMNet, each in the published form (radial features with a bias, mis-shifted
envelope) and in that of lkm-calc, a small network is trained for a few hundred steps on frames of
a file in MD17 layout. In a held-out frame, an atom then moves along the line to another one,
through the cut-off of the local graph and, for another pair, of the global graph. The script prints
the jumps between 1e-9 Å before and after the cut-off.

    python -m benchmarks.smoothness rmd17_aspirin_train_01.npz --output smoothness.png
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from tqdm import tqdm

from lkm_calc import EnergyModel, Graph, build_model, energy_and_forces
from lkm_calc.runtime import fast_matmul
from train.config import LossConfig
from train.data import Frames, GraphFrames, epoch_order, fit_reference_energies
from train.formats import read_md17
from train.gradients import training_loss

from .published import with_published_features

SIZES: dict[str, Any] = {
    "hidden": 64,
    "num_layers": 3,
    "num_radial": 6,
    "num_spherical_radial": 3,
}
WINDOW = 0.02
"""Half the range of distances drawn, Å."""
CLEARANCE = 0.15
"""Distance in Å that other pairs of the moving atom keep from the cut-off."""


def train(model: EnergyModel, frames: Frames, steps: int, label: str) -> EnergyModel:
    """Fit a model to energies and forces, and return it in float64."""
    reference = fit_reference_energies(frames)
    energies = dict(zip(reference.elements, reference.energies, strict=True))
    model.calibrate(float(np.std(frames.forces)), energies, reference.elements)
    data = GraphFrames(frames, model, torch.device("cpu"))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    order = epoch_order(len(data), seed=0, epoch=0)
    loss = LossConfig(kind="l2", energy=2.0, gamma=0.01)
    with fast_matmul():
        for step in tqdm(range(steps), label):
            batch = order[(torch.arange(5) + 5 * step) % len(order)]
            labelled = data.batch(batch)
            out = energy_and_forces(model, labelled.graph, create_graph=True)
            optimiser.zero_grad()
            training_loss(out, labelled, loss).total.backward()
            optimiser.step()
            schedule.step()
    return model.double().requires_grad_(False)


class Path1D(NamedTuple):
    """A frame in which one atom moves on the line from another one."""

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    fixed: int
    moving: int

    def at(self, distance: float) -> tuple[ase.Atoms, NDArray[np.float64]]:
        """Return the structure with the pair at a distance (Å), and the direction of the path."""
        start = self.positions[self.fixed]
        direction = self.positions[self.moving] - start
        direction = direction / np.linalg.norm(direction)
        positions = self.positions.copy()
        positions[self.moving] = start + distance * direction
        return ase.Atoms(self.numbers, positions), direction


def find_path(frames: Frames, cutoff: float) -> Path1D:
    """Return the first frame in which a single pair of an atom is near the cut-off."""
    for f in range(len(frames)):
        rows = slice(frames.starts[f], frames.starts[f + 1])
        positions = frames.positions[rows]
        off = np.abs(cdist(positions, positions) - cutoff)
        for fixed, moving in np.argwhere(off < WINDOW):
            if np.sort(off[moving])[1] > CLEARANCE:
                return Path1D(frames.numbers[rows], positions, int(fixed), int(moving))
    raise SystemExit(f"No frame has a pair near {cutoff} Å; take a larger molecule or more frames.")


def along(
    model: EnergyModel, path: Path1D, distances: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return energies (eV) and forces on the moving atom along the path (eV/Å)."""
    energies, forces = [], []
    for distance in distances:
        atoms, direction = path.at(distance)
        out = energy_and_forces(model, Graph.from_atoms(atoms, model.cutoff))
        energies.append(out.energy.item())
        forces.append(float(out.forces[path.moving].numpy() @ direction))
    return np.array(energies), np.array(forces)


def draw(axes: NDArray[Any], model: EnergyModel, path: Path1D, cutoff: float, colour: str) -> str:
    """Draw energy and force in a column, and return the jumps as text."""
    side = np.concatenate([[1e-9], np.linspace(0, WINDOW, 40)[1:]])
    inside, outside = cutoff - side[::-1], cutoff + side
    before, after = along(model, path, inside), along(model, path, outside)
    zero = after[0][0]
    for axis, values, more in zip(axes, before, after, strict=True):
        offset = zero if axis is axes[0] else 0.0
        axis.plot(inside, 1e3 * (values - offset), colour)
        axis.plot(outside, 1e3 * (more - offset), colour)
        axis.axvline(cutoff, color="0.7", lw=0.8, zorder=0)
    jumps = [1e3 * (more[0] - values[-1]) for values, more in zip(before, after, strict=True)]
    return f"energy jumps by {jumps[0]:.2g} meV, force by {jumps[1]:.2g} meV/Å"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("frames", help="file in the layout of MD17 or revised MD17")
    parser.add_argument("--steps", type=int, default=600, help="of training (default 600)")
    parser.add_argument("--output", type=Path, default=Path("smoothness.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    frames = read_md17(arguments.frames)
    used, unused = np.split(np.arange(len(frames)), [len(frames) * 9 // 10])
    figure = Figure(figsize=(14, 6), layout="constrained")
    grid = figure.subplots(2, 4, sharex="col", squeeze=False)
    for k, name in enumerate(("mxmnet", "pamnet")):
        torch.manual_seed(0)
        ours = build_model(name, **SIZES)
        models = {"published": (with_published_features(ours), "C3"), "ours": (ours, "C0")}
        for label, (model, colour) in models.items():
            trained = train(model, frames.select(used), arguments.steps, f"{name}, {label}")
            for column, key in enumerate(("local_cutoff", "cutoff"), start=2 * k):
                cutoff = ours.hypers[key]
                path = find_path(frames.select(unused), cutoff)
                text = draw(grid[:, column], trained, path, cutoff, colour)
                print(f"{name}, {label}, {key} {cutoff} Å: {text}")
                grid[0, column].set_title(f"{name}, {key} {cutoff} Å")
                grid[1, column].set_xlabel("distance of the pair, Å")
    grid[0, 0].set_ylabel("energy, meV")
    grid[1, 0].set_ylabel("force along the path, meV/Å")
    grid[0, 0].plot([], [], "C3", label="published formula")
    grid[0, 0].plot([], [], "C0", label="ours")
    grid[0, 0].legend(frameon=False)
    figure.savefig(arguments.output, dpi=120)


if __name__ == "__main__":
    main()
