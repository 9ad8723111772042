"""Removal of constant energy errors of the averaged weights.

While the learning rate is high, predicted energies have a constant error for each composition that
changes with every step and is several times as large as the remaining error. It is fitted on
training frames and removed, so that validation errors measure the shape of the potential energy
surface.
"""

import torch
from torch import Tensor

from lkm_calc import EnergyModel
from lkm_calc.graph import sum_to
from lkm_calc.nn import MAX_NUMBER
from lkm_calc.runtime import own_settings

from ..data import GraphFrames

MAX_FRAMES = 200
"""Maximum number of training frames, evenly spaced, used for the fit."""
MIN_FRAMES = 10
"""Minimum mean number of frames per composition; with fewer, the fit would follow the noise."""


@own_settings
def centre_energies(model: EnergyModel, data: GraphFrames, batch_size: int) -> None:
    """Shift the energies of the elements of a model by least squares on training frames.

    Does nothing if there are too many compositions for the number of frames, or an energy is not
    finite.
    """
    count = min(len(data), MAX_FRAMES)
    frames = torch.linspace(0, len(data) - 1, count, dtype=torch.float64).round().long()
    compositions, errors = [], []
    for indices in frames.split(batch_size):
        batch = data.batch(indices)
        with torch.no_grad():
            errors.append(batch.energies - model(batch.graph).energy)
        one_hot = torch.nn.functional.one_hot(batch.graph.numbers, MAX_NUMBER + 1).double()
        compositions.append(sum_to(one_hot, batch.graph.graph_index, len(indices)))
    counts, error = torch.cat(compositions).cpu(), torch.cat(errors).double().cpu()
    if len(counts.unique(dim=0)) * MIN_FRAMES > count or not error.isfinite().all():
        return
    elements = counts.any(0).nonzero().flatten()
    # The minimum-norm solution: gelsd handles rank-deficient matrices.
    shifts: Tensor = torch.linalg.lstsq(
        counts[:, elements], error[:, None], driver="gelsd"
    ).solution
    model.shift_energies(dict(zip(elements.tolist(), shifts[:, 0].tolist(), strict=True)))
