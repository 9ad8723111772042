"""Latent distance: distance of an atom's embeddings from those of the training atoms.

Unfamiliar environments usually have unfamiliar embeddings. The embeddings of an atom after all
layers are concatenated; those of the training atoms of an element are modelled by a normal
distribution, and the distance is the Mahalanobis distance. The distribution is that of
probabilistic principal component analysis (M. E. Tipping and C. M. Bishop, J. R. Stat. Soc. B 61,
611, 1999): the leading directions have individual variances, all others share one, so that
deviations from the subspace of the training set count as well.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

LATENT_PREFIX = "latent."
"""Prefix of the names of its tensors in a model file."""

KEPT = 1e-2
"""Directions with a standard deviation below this fraction of the largest share one variance."""
FLOOR = 1e-3
"""Minimum of that shared standard deviation, relative to the largest."""
TINY = 1e-6
"""Its absolute minimum, for identical training atoms; near the round-off of float32 embeddings."""


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Distribution of the embeddings of an element, in float64."""

    mean: Float[Tensor, " dim"]
    directions: Float[Tensor, "kept dim"]
    """Leading directions, orthonormal up to rounding to float16, the dtype used in files."""
    deviations: Float[Tensor, " kept"]
    """Standard deviation along each of them."""
    rest: Float[Tensor, ""]
    """Standard deviation along all other directions."""

    def distance(self, features: Float[Tensor, "atoms dim"]) -> Float[Tensor, " atoms"]:
        """Return the distance of atoms, given their concatenated embeddings."""
        off = features - self.mean
        along = off @ self.directions.T
        beside = off - along @ self.directions
        squares = (along / self.deviations).square().sum(1) + (beside / self.rest).square().sum(1)
        return squares.sqrt()


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """Distributions of the embeddings of the training atoms, by atomic number."""

    elements: Mapping[int, LatentStatistics]

    def distance(
        self, numbers: NDArray[np.integer], embeddings: Sequence[Float[Tensor, "atoms dim"]]
    ) -> Float[Tensor, " atoms"]:
        """Return the latent distance of each atom in float64.

        For a calibrated model it is normalised to 1 at the largest held-out value of an element.

        Args:
            numbers: Atomic numbers, all in the training set.
            embeddings: Embeddings of each layer, on the device of the statistics.

        Raises:
            ValueError: The embeddings have a different size.
        """
        features = torch.cat(list(embeddings), 1).double()
        found = features.new_empty(len(features))
        present, counts = np.unique(numbers, return_counts=True)
        order = torch.from_numpy(np.argsort(numbers, kind="stable")).to(features.device)
        for number, rows in zip(present.tolist(), order.split(counts.tolist()), strict=True):
            one = self.elements[number]
            if len(one.mean) != features.shape[1]:
                raise ValueError(
                    f"The latent statistics have {len(one.mean)} features per atom, but the model "
                    f"returned {features.shape[1]}. Repeat lkm-train calibrate."
                )
            found[rows] = one.distance(features[rows])
        return found

    def scaled(self, largest: Mapping[int, float]) -> "LatentSpace":
        """Return statistics with the distance of each element divided by a number."""
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
        """Return the statistics on a device."""
        return LatentSpace(
            {
                number: LatentStatistics(*(value.to(device) for value in vars(one).values()))
                for number, one in self.elements.items()
            }
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store in a model file, by name."""
        return {
            f"{LATENT_PREFIX}{chemical_symbols[number]}.{name}": (
                value.half() if name == "directions" else value
            ).cpu()
            for number, one in self.elements.items()
            for name, value in vars(one).items()
        }


def latent_from_tensors(tensors: Mapping[str, Tensor], elements: Sequence[str]) -> LatentSpace:
    """Return the latent statistics from the tensors of :meth:`LatentSpace.tensors`.

    Args:
        tensors: Tensors by name.
        elements: Symbols of the model's elements.

    Raises:
        KeyError: A tensor is missing.
        ValueError: A tensor is unexpected, has a wrong shape or invalid values.
    """
    names = [field.name for field in fields(LatentStatistics)]
    expected = {f"{LATENT_PREFIX}{symbol}.{name}" for symbol in elements for name in names}
    if strange := tensors.keys() - expected:
        raise ValueError(f"{min(strange)} is not expected")
    found = {}
    for symbol in elements:
        parts = {name: tensors[f"{LATENT_PREFIX}{symbol}.{name}"].double() for name in names}
        _check(symbol, **parts)
        found[atomic_numbers[symbol]] = LatentStatistics(**parts)
    return LatentSpace(found)


def _check(symbol: str, mean: Tensor, directions: Tensor, deviations: Tensor, rest: Tensor) -> None:
    """Raise a ValueError if statistics have inconsistent shapes or invalid values."""
    kept, dim = len(deviations), len(mean)
    if directions.shape != (kept, dim) or mean.dim() != 1 or rest.dim() != 0:
        raise ValueError(f"the latent statistics of {symbol} have inconsistent shapes")
    if not all(value.isfinite().all() for value in (mean, directions, deviations, rest)):
        raise ValueError(f"a latent statistic of {symbol} is not finite")
    if not ((deviations > 0).all() and rest > 0):
        raise ValueError(f"a latent standard deviation of {symbol} is not positive")


def fit_latent(
    batches: Iterable[tuple[Int[Tensor, " _atoms"], Sequence[Float[Tensor, "_atoms dim"]]]],
    elements: Sequence[int],
    least: int,
) -> LatentSpace:
    """Fit the distribution of embeddings of each element.

    Args:
        batches: Atomic numbers of training atoms and their embeddings of each layer, in batches.
        elements: Atomic numbers of the model's elements.
        least: For elements with fewer atoms the statistics of all atoms are used.
    """
    # An additional feature of 1 gives count, sum and sum of products at once. Only one matrix per
    # element is kept, because the embeddings of all training atoms may not fit into memory.
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
