"""Calibration of a model for its extrapolation guards."""

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

from ..data import (
    DataError,
    Frames,
    GraphFrames,
    Split,
    drawn_structures,
    random_split,
    split_structures,
)
from .writing import checksum

MIN_ATOMS = 20
"""For elements with fewer atoms, the atoms of all elements are used."""
BINS = 10
"""Maximum number of bins of the expected error; each contains at least MIN_ATOMS atoms."""
MAX_FRAMES = 1000
"""Maximum number of training frames, evenly spaced, for the latent statistics; 200 give nearly the
same result."""


@own_settings
def calibrate(
    model: EnergyModel, held_out: GraphFrames, training: GraphFrames, batch_size: int
) -> tuple[Calibration, LatentSpace]:
    """Compute the calibration of a model from held-out and training frames.

    Raises:
        DataError: The held-out frames have no forces.
    """
    if held_out.forces is None:
        raise DataError(
            "The held-out frames have no forces, which calibration needs. Use frames with forces."
        )
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
        # Values below 1 are round-off, for atoms that are all alike.
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
    """Return the distribution of the embeddings of training atoms."""
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
    """Calibrate the model of a file and store the calibration in it, atomically.

    The weights are unchanged.

    Raises:
        DataError: The held-out frames have no forces.
    """
    model = load_model(path, device=held_out.device)
    found, latent = calibrate(model, held_out, training, batch_size)
    add_calibration(path, found, latent)
    return found


def own_split(model: EnergyModel, frames: Frames, path: str | Path) -> Split | None:
    """Return the split of a file with which a model was trained, or None for other files.

    With separate files of training and validation frames, the other part is empty.
    """
    training = model.provenance
    found, files = checksum(str(path)), training.get("files", {})
    names = [n for n in ("train", "validation") if files.get(n, {}).get("sha256") == found]
    if not names:
        return None
    data, run = (training["config"][section] for section in ("data", "run"))
    if "validation" in files:
        rows = {
            n: drawn_structures(frames, data[f"n_{n}"], run["seed"], n, str(path)) for n in names
        }
        nothing = np.empty(0, dtype=np.int64)
        return Split(rows.get("train", nothing), rows.get("validation", nothing))
    sizes = data["n_train"], data["n_validation"], run["seed"]
    n_test = data.get("n_test", 0)  # missing in older files
    if "isolated_atoms" in training:  # missing without isolated atoms and in older files
        return split_structures(frames, *sizes, str(path), n_test)
    return random_split(len(frames), *sizes, n_test=n_test)


def closest_distances(data: GraphFrames, model: EnergyModel, batch_size: int) -> dict[str, float]:
    """Return the closest distance in Å of each pair of elements, including periodic images.

    The cutoff is used for pairs that are never within it.
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
    """Return median errors in equally populated bins, made monotonic by isotonic regression."""
    bins = np.array_split(np.argsort(distance), max(1, min(BINS, len(error) // MIN_ATOMS)))
    rising = isotonic_regression([np.median(error[b]) for b in bins], weights=[*map(len, bins)])
    return {
        "distance": [float(np.median(distance[b])) for b in bins],
        "error": rising.x.tolist(),
    }
