"""What held-out and training frames say about a model: the yardstick of its guards.

It is kept in the model file, as data in the provenance and, for the latent distance, as tensors:
see :mod:`lkm_calc.embeddings`. ``lkm-train calibrate`` makes it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from ..models import EnergyModel
from ..nn import MAX_NUMBER

KEY = "calibration"
"""Its key in a model's provenance."""

QUANTILES = {"50": 0.5, "95": 0.95, "99": 0.99, "99.9": 0.999, "max": 1.0}
"""The quantiles that are kept, by name."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Errors and closest pairs of a model on frames that it knows.

    All of it is plain data: dictionaries of element symbols and numbers.
    """

    frames: int
    """Number of held-out frames."""
    force_error: Mapping[str, float]
    """Quantiles of the size of the error of an atom's force on the held-out frames, eV/Å."""
    expected_error: Mapping[str, Mapping[str, Sequence[float]]]
    """By element, the force error in eV/Å (``error``, not falling) that belongs to a latent
    ``distance``."""
    closest: Mapping[str, float]
    """The closest distance of each pair of elements in the training frames in Å, as "H-C" in the
    order of atomic numbers; the model's cutoff where no such pair came within it."""

    def force_errors(
        self, numbers: NDArray[np.integer], distance: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """Return the force error in eV/Å that each atom's latent distance lets expect.

        Beyond the held-out frames it grows in proportion to the distance. It is no upper bound, and
        of foreign molecules much too low.
        """
        errors = np.empty(len(numbers))
        for symbol, curve in self.expected_error.items():
            chosen = np.asarray(numbers) == atomic_numbers[symbol]
            last = curve["distance"][-1] or 1.0  # 0 where all atoms are alike
            beyond = np.maximum(1, distance[chosen] / last)
            errors[chosen] = beyond * np.interp(distance[chosen], curve["distance"], curve["error"])
        return errors

    def closest_table(self) -> NDArray[np.float64]:
        """Return the closest distances in Å by two atomic numbers; 0 for unknown elements."""
        table = np.zeros((MAX_NUMBER + 1, MAX_NUMBER + 1))
        for pair, distance in self.closest.items():
            a, b = (atomic_numbers[symbol] for symbol in pair.split("-"))
            table[a, b] = table[b, a] = distance
        return table

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def calibration_of(model: EnergyModel) -> Calibration | None:
    """Return the calibration that a model's file holds, or None if it holds none.

    Raises:
        ValueError: It was edited, or is that of another model.
    """
    data = model.provenance.get(KEY)
    if data is None:
        return None
    try:
        found = Calibration(**data)
        _check(found, model.elements)
        if model.latent is None:
            raise ValueError("there are no latent statistics")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The model's calibration is damaged ({type(error).__name__}: {error}). Make it again "
            "with lkm-train calibrate."
        ) from error
    return found


def pair_names(elements: Sequence[str]) -> list[str]:
    """Return every pair of elements, given by atomic number, as "H-C"."""
    return ["-".join(pair) for pair in combinations_with_replacement(elements, 2)]


def _check(found: Calibration, elements: Sequence[str]) -> None:
    """Raise a ValueError or KeyError if something is missing or no number."""
    values = [found.force_error[name] for name in QUANTILES]
    values += [found.closest[pair] for pair in pair_names(elements)]
    for symbol in elements:
        curve = found.expected_error[symbol]
        if not len(curve["distance"]) == len(curve["error"]) > 0:
            raise ValueError(f"expected_error of {symbol} is not two lists of one length")
        values += [*curve["distance"], *curve["error"]]
    if not all(isinstance(v, (int, float)) and math.isfinite(v) and v >= 0 for v in values):
        raise ValueError("a value is negative or no number")
