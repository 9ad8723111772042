"""Calibration of a model on held-out and training frames, the reference of its guards.

It is stored in the model file, as JSON in the provenance and, for the latent distance, as tensors;
see :mod:`lkm_calc.embeddings`. ``lkm-train calibrate`` creates it.
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

CALIBRATION_ENTRY = "calibration"
"""Its key in the provenance of a model."""

QUANTILES = {"50": 0.5, "95": 0.95, "99": 0.99, "99.9": 0.999, "max": 1.0}
"""The stored quantiles, by name."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Force errors on held-out frames and closest distances in the training frames.

    All fields are JSON data: dictionaries of element symbols and numbers.
    """

    frames: int
    """Number of held-out frames."""
    force_error: Mapping[str, float]
    """Quantiles of the magnitude of the atomic force error on the held-out frames, eV/Å."""
    expected_error: Mapping[str, Mapping[str, Sequence[float]]]
    """By element, the expected force error in eV/Å (``error``, monotonic) as a function of the
    latent ``distance``."""
    closest: Mapping[str, float]
    """The closest distance of each pair of elements in the training frames in Å, as "H-C" in the
    order of atomic numbers; the cutoff if there is no such pair within it."""

    def force_errors(
        self, numbers: NDArray[np.integer], distance: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """Return the expected force error of each atom in eV/Å from its latent distance.

        Beyond the largest held-out distance it grows in proportion to the distance. It is not an
        upper bound, and much too low for unseen molecules.
        """
        errors = np.empty(len(numbers))
        for symbol, curve in self.expected_error.items():
            chosen = np.asarray(numbers) == atomic_numbers[symbol]
            last = curve["distance"][-1] or 1.0  # 0 if all atoms are alike
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
        """Return the calibration as JSON values."""
        return asdict(self)


def calibration_of(model: EnergyModel) -> Calibration | None:
    """Return the calibration stored in a model file, or None if there is none.

    Raises:
        ValueError: It was edited or belongs to a different model.
    """
    data = model.provenance.get(CALIBRATION_ENTRY)
    if data is None:
        return None
    try:
        found = Calibration(**data)
        _check(found, model.elements)
        if model.latent is None:
            raise ValueError("there are no latent statistics")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The model's calibration is damaged ({type(error).__name__}: {error}). Repeat it with "
            "lkm-train calibrate."
        ) from error
    return found


def pair_names(elements: Sequence[str]) -> list[str]:
    """Return all pairs of elements, in order of atomic number, as "H-C"."""
    return ["-".join(pair) for pair in combinations_with_replacement(elements, 2)]


def _check(found: Calibration, elements: Sequence[str]) -> None:
    """Raise a ValueError or KeyError if a value is missing or invalid."""
    values = [found.force_error[name] for name in QUANTILES]
    values += [found.closest[pair] for pair in pair_names(elements)]
    for symbol in elements:
        curve = found.expected_error[symbol]
        if not len(curve["distance"]) == len(curve["error"]) > 0:
            raise ValueError(f"expected_error of {symbol} is not two lists of equal length")
        values += [*curve["distance"], *curve["error"]]
    if not all(isinstance(v, (int, float)) and math.isfinite(v) and v >= 0 for v in values):
        raise ValueError("a value is negative or not a finite number")
