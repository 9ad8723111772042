"""How far an atom's embeddings are from those of the training atoms of its element.

What a model has not seen it mostly embeds elsewhere. All layers' embeddings of an atom make one
vector; those of an element in the training frames are taken for a normal distribution, and the
distance is Mahalanobis' for it: in units of the standard deviation along each direction. The
distribution is that of probabilistic principal component analysis (M. E. Tipping and C. M. Bishop,
J. R. Stat. Soc. B 61, 611, 1999): the leading directions have their own variances, the rest share
one, so that what leaves the space of the training set counts too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

PREFIX = "latent."
"""What the names of its tensors in a model file begin with."""

KEPT = 1e-2
"""Standard deviation, relative to the largest, below which a direction is one of the rest."""
FLOOR = 1e-3
"""Least standard deviation of the rest, relative to the largest of all."""
TINY = 1e-6
"""The same where all training atoms are alike, near the round-off of embeddings in float32."""


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Where the embeddings of an element lie; all in float64."""

    mean: Float[Tensor, " dim"]
    directions: Float[Tensor, "kept dim"]
    """Orthonormal but for rounding to float16, in which files keep them."""
    deviations: Float[Tensor, " kept"]
    """Standard deviation along each of them."""
    rest: Float[Tensor, ""]
    """Standard deviation along any other direction."""

    def distance(self, features: Float[Tensor, "atoms dim"]) -> Float[Tensor, " atoms"]:
        """Return the distance of the embeddings of some atoms, one after the other layer."""
        off = features - self.mean
        along = off @ self.directions.T
        beside = off - along @ self.directions
        squares = (along / self.deviations).square().sum(1) + (beside / self.rest).square().sum(1)
        return squares.sqrt()


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """Where the training atoms of a model lie, by atomic number."""

    elements: Mapping[int, LatentStatistics]

    def distance(
        self, numbers: NDArray[np.integer], embeddings: Sequence[Float[Tensor, "atoms dim"]]
    ) -> Float[Tensor, " atoms"]:
        """Return each atom's distance, float64; that of a calibrated model is 1 at the largest.

        Args:
            numbers: Atomic numbers, all among those of the training set.
            embeddings: Of each layer, on the device of the statistics.

        Raises:
            ValueError: The embeddings are of another model.
        """
        features = torch.cat(list(embeddings), 1).double()
        found = features.new_empty(len(features))
        present, counts = np.unique(numbers, return_counts=True)
        order = torch.from_numpy(np.argsort(numbers, kind="stable")).to(features.device)
        for number, rows in zip(present.tolist(), order.split(counts.tolist()), strict=True):
            one = self.elements[number]
            if len(one.mean) != features.shape[1]:
                raise ValueError(
                    f"The latent statistics are of {len(one.mean)} features an atom, and there are "
                    f"{features.shape[1]}. Make them again with lkm-train calibrate."
                )
            found[rows] = one.distance(features[rows])
        return found

    def scaled(self, largest: Mapping[int, float]) -> "LatentSpace":
        """Return the space in which the distance of each element is divided by a number."""
        return LatentSpace(
            {
                number: LatentStatistics(
                    one.mean,
                    one.directions,
                    one.deviations * largest[number],
                    one.rest * largest[number],
                )
                for number, one in self.elements.items()
            }
        )

    def to(self, device: torch.device) -> "LatentSpace":
        """Return it on a device."""
        return LatentSpace(
            {
                number: LatentStatistics(*(value.to(device) for value in vars(one).values()))
                for number, one in self.elements.items()
            }
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return what a model file keeps, by name."""
        return {
            f"{PREFIX}{chemical_symbols[number]}.{name}": (
                value.half() if name == "directions" else value
            ).cpu()
            for number, one in self.elements.items()
            for name, value in vars(one).items()
        }


def latent_from_tensors(tensors: Mapping[str, Tensor], elements: Sequence[str]) -> LatentSpace:
    """Return what :meth:`LatentSpace.tensors` gave.

    Args:
        tensors: By name.
        elements: Symbols of the model's elements.

    Raises:
        KeyError: A tensor is missing.
        ValueError: Something does not fit or makes no sense.
    """
    names = [field.name for field in fields(LatentStatistics)]
    expected = {f"{PREFIX}{symbol}.{name}" for symbol in elements for name in names}
    if strange := tensors.keys() - expected:
        raise ValueError(f"{min(strange)} is not expected")
    found = {}
    for symbol in elements:
        parts = {name: tensors[f"{PREFIX}{symbol}.{name}"].double() for name in names}
        _check(symbol, **parts)
        found[atomic_numbers[symbol]] = LatentStatistics(**parts)
    return LatentSpace(found)


def _check(symbol: str, mean: Tensor, directions: Tensor, deviations: Tensor, rest: Tensor) -> None:
    """Raise a ValueError if statistics do not fit each other or make no sense."""
    kept, dim = len(deviations), len(mean)
    if directions.shape != (kept, dim) or mean.dim() != 1 or rest.dim() != 0:
        raise ValueError(f"the latent statistics of {symbol} do not fit each other in shape")
    if not all(value.isfinite().all() for value in (mean, directions, deviations, rest)):
        raise ValueError(f"a latent statistic of {symbol} is not finite")
    if not ((deviations > 0).all() and rest > 0):
        raise ValueError(f"a latent standard deviation of {symbol} is not positive")


def fit_latent(
    batches: Iterable[tuple[Int[Tensor, " _atoms"], Sequence[Float[Tensor, "_atoms dim"]]]],
    elements: Sequence[int],
    least: int,
) -> LatentSpace:
    """Return where atoms lie, in standard deviations.

    Args:
        batches: Atomic numbers of training atoms, and their embeddings of each layer; of any sizes.
        elements: Atomic numbers of the model's elements.
        least: Number of atoms of an element below which those of all stand in for them.
    """
    # Count, sum and sum of products at once: a feature that is always 1 is added. Of a matrix an
    # element, because the embeddings of all training atoms may be more than memory holds.
    moments: dict[int, Tensor] = {}
    for numbers, embeddings in batches:
        features = torch.cat(list(embeddings), 1).double()
        features = torch.nn.functional.pad(features, (0, 1), value=1.0)
        for number in elements:
            rows = features[numbers == number]
            moments[number] = moments.get(number, 0) + rows.T @ rows
    everything = torch.stack(list(moments.values())).sum(0)
    return LatentSpace(
        {
            number: _statistics(one if one[-1, -1] >= least else everything)
            for number, one in moments.items()
        }
    )


def _statistics(moments: Float[Tensor, "dim_1 dim_1"]) -> LatentStatistics:
    """Return the statistics of vectors from the sums of products of their components and 1."""
    count = moments[-1, -1]
    mean = moments[-1, :-1] / count
    covariance = moments[:-1, :-1] / count - torch.outer(mean, mean)
    variances, directions = torch.linalg.eigh(covariance)
    deviations = variances.clamp_min(0).sqrt().flip(0)
    kept = int((deviations > KEPT * deviations[0]).sum())
    others = deviations[kept:]
    rest = (others.square().sum() / max(1, len(others))).sqrt()
    return LatentStatistics(
        mean,
        directions.T.flip(0)[:kept].half().double(),
        deviations[:kept],
        rest.clamp_min(FLOOR * deviations[0].item()).clamp_min(TINY),
    )
