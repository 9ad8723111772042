"""The calibration of a model: what its guards compare a simulation with."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from torch import Tensor

from lkm_calc import EnergyModel, energy_and_forces, load_model
from lkm_calc.embeddings import LatentSpace, fit_latent
from lkm_calc.nn import MAX_NUMBER
from lkm_calc.potential import add_calibration
from lkm_calc.runtime import own_settings
from lkm_calc.uncertainty import QUANTILES, Calibration, pair_names

from ..data import DataError, Frames, GraphFrames, Split, random_split, split_structures
from .writing import checksum

MIN_ATOMS = 20
"""Atoms of an element below which those of all elements stand in for them."""
BINS = 10
"""Largest number of bins of the map from distance to error; each holds MIN_ATOMS or more."""
MAX_FRAMES = 1000
"""Training frames, evenly chosen, whose embeddings are looked at; 200 tell nearly the same."""


@own_settings
def calibrate(
    model: EnergyModel, held_out: GraphFrames, training: GraphFrames, batch_size: int
) -> tuple[Calibration, LatentSpace]:
    """Measure a model on frames that it did not learn, and its training frames.

    Raises:
        DataError: The held-out frames have no forces.
    """
    if held_out.forces is None:
        raise DataError("The held-out frames have no forces, so there is no error to compare with.")
    latent = _latent_of(model, training, batch_size)
    labelled = held_out.n_forces.nonzero().flatten()
    elements, forces, distances = [], [], []
    for indices in labelled.split(batch_size):
        graph = held_out.batch(indices).graph
        out = energy_and_forces(model, graph)
        elements.append(graph.numbers.cpu())
        forces.append(out.forces)
        distances.append(latent.distance(elements[-1].numpy(), out.embeddings))
    numbers = torch.cat(elements).numpy()
    labels = held_out.forces[~held_out.forces.isnan().all(1)]
    error = (torch.cat(forces) - labels).norm(dim=1).double().cpu().numpy()
    distance = torch.cat(distances).cpu().numpy()
    largest, expected = {}, {}
    for number in model.known_elements.nonzero().flatten().tolist():
        chosen = numbers == number
        if chosen.sum() < MIN_ATOMS:
            chosen[:] = True
        # Less than 1 is round-off of atoms that are all alike.
        largest[number] = max(1.0, float(distance[chosen].max()))
        curve = _expected_error(distance[chosen] / largest[number], error[chosen])
        expected[chemical_symbols[number]] = curve
    calibration = Calibration(
        frames=len(labelled),
        force_error=_quantiles(error),
        expected_error=expected,
        closest=closest_distances(training, model, batch_size),
    )
    return calibration, latent.scaled(largest)


def _latent_of(model: EnergyModel, training: GraphFrames, batch_size: int) -> LatentSpace:
    """Return where the embeddings of training atoms lie."""
    count = min(len(training), MAX_FRAMES)
    frames = torch.linspace(0, len(training) - 1, count, dtype=torch.float32).long()

    def batches() -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        for indices in frames.split(batch_size):
            graph = training.batch(indices).graph
            with torch.no_grad():
                yield graph.numbers, model(graph).embeddings

    return fit_latent(batches(), model.known_elements.nonzero().flatten().tolist(), MIN_ATOMS)


@own_settings
def calibrate_file(
    path: str | Path, held_out: GraphFrames, training: GraphFrames, batch_size: int
) -> Calibration:
    """Measure the model of a file and put its calibration into it, whole or not at all.

    The weights stay as they are, bit for bit.

    Raises:
        DataError: The held-out frames have no forces.
    """
    model = load_model(path, device=held_out.device)
    found, latent = calibrate(model, held_out, training, batch_size)
    add_calibration(path, found, latent)
    return found


def own_split(model: EnergyModel, frames: Frames, path: str | Path) -> Split | None:
    """Return how a model's training split the frames of a file; None if it was another file."""
    training = model.provenance
    if training.get("files", {}).get("train", {}).get("sha256") != checksum(str(path)):
        return None
    data, run = (training["config"][section] for section in ("data", "run"))
    sizes = data["n_train"], data["n_validation"], run["seed"]
    if "isolated_atoms" in training:  # without them, or before they were told from other frames
        return split_structures(frames, *sizes, str(path))
    return random_split(len(frames), *sizes)


def closest_distances(data: GraphFrames, model: EnergyModel, batch_size: int) -> dict[str, float]:
    """Return the closest distance in Å of each pair of the model's elements, images included.

    The cutoff stands for pairs that never come within it.
    """
    rows = MAX_NUMBER + 1
    table = torch.full((rows * rows,), data.cutoff, dtype=torch.float64, device=data.device)
    for indices in data.in_order(batch_size):
        graph = data.batch(indices).graph
        source, target = graph.numbers[graph.edge_index]
        lengths = graph.edge_vectors().norm(dim=1)
        table.scatter_reduce_(0, source * rows + target, lengths, "amin")
    found: Float[Tensor, "elements elements"] = table.view(rows, rows)[model.known_elements][
        :, model.known_elements
    ]
    upper = torch.triu_indices(*found.shape, device=found.device)
    return dict(zip(pair_names(model.elements), found[*upper].tolist(), strict=True))


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    return {name: float(np.quantile(values, q)) for name, q in QUANTILES.items()}


def _expected_error(
    distance: NDArray[np.float64], error: NDArray[np.float64]
) -> dict[str, list[float]]:
    """Return the medians of bins of as many atoms each, made not to fall by isotonic regression."""
    bins = np.array_split(np.argsort(distance), max(1, min(BINS, len(error) // MIN_ATOMS)))
    rising = isotonic_regression([np.median(error[b]) for b in bins], weights=[*map(len, bins)])
    return {
        "distance": [float(np.median(distance[b])) for b in bins],
        "error": rising.x.tolist(),
    }
