"""Guards detect structures outside the training distribution of a model."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from numpy.typing import NDArray

from ..graph import edges_within
from ..models import EnergyModel
from .calibration import calibration_of
from .collection import Collection

ACTIONS = ("warn", "stop", "save")
"""Actions for structures outside the training distribution."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Thresholds beyond which a structure is outside the training distribution.

    ``inf`` disables the first two, 0 the last.
    """

    force_spread: float | None = None
    """For a committee: force spread of an atom in eV/Å. None uses the 99.9 % quantile of the force
    errors on held-out frames, averaged over the members."""
    latent_distance: float = 1.3
    """For a single model: latent distance of an atom, relative to the largest value of its element
    on held-out frames."""
    closest: float = 0.9
    """Distance of two atoms, relative to the closest such pair in the training frames."""


class Excess(NamedTuple):
    """A threshold exceeded by a structure."""

    measure: str
    """``force_spread``, ``latent_distance`` or ``closest``."""
    atoms: tuple[int, ...]
    """The worst atom, or the two atoms of a pair."""
    value: float
    threshold: float
    text: str
    """Description for messages."""


class ExtrapolationWarning(UserWarning):
    """A structure is outside the training distribution of the model."""


class ExtrapolationError(RuntimeError):
    """A calculation was stopped because the structure is outside the training distribution.

    Args:
        excesses: The exceeded thresholds.
        atoms: The structure; a copy without calculator is kept.
    """

    def __init__(self, excesses: Sequence[Excess], atoms: ase.Atoms) -> None:
        self.excesses = tuple(excesses)
        self.atoms = atoms.copy()
        super().__init__(
            f"The structure is outside the training distribution: {_listed(excesses)}. It is "
            "available as `atoms` of this exception; label it and add it to the training set, or "
            "raise the threshold."
        )


class Guard:
    """Check whether structures are within the training distribution of the models.

    - ``warn`` warns once per measure; ``counts`` counts all structures.
    - ``stop`` raises an :class:`ExtrapolationError`.
    - ``save`` adds the structure to a file, unless a similar one is there: see
      :class:`lkm_calc.uncertainty.Collection`.

    Args:
        models: The model, or the members of a committee.
        action: One of ``ACTIONS``.
        file: File for ``save``.
        thresholds: Defaults are used if None.

    Raises:
        ValueError: The action is unknown, a required calibration is missing or damaged, or the
            file cannot be read.
    """

    def __init__(
        self,
        models: Sequence[EnergyModel],
        action: str,
        file: str | Path = "extrapolation.extxyz",
        thresholds: Thresholds | None = None,
    ) -> None:
        if action not in ACTIONS:
            raise ValueError(
                f"on_extrapolation is {action!r}; choose 'warn', 'stop', 'save', or None for no "
                "check."
            )
        self.action = action
        self.thresholds = thresholds or Thresholds()
        self.counts: dict[str, int] = {}
        """Number of structures beyond the threshold, by measure."""
        self.excesses: tuple[Excess, ...] = ()
        """Thresholds exceeded by the last structure."""
        self.collection = Collection(file) if action == "save" else None
        self._measures = _measures(models, self.thresholds)

    def __call__(self, atoms: ase.Atoms, extras: Mapping[str, Any]) -> None:
        """Check a structure after its calculation.

        Args:
            atoms: The structure.
            extras: Its uncertainty measures: ``force_spread`` (atoms) in eV/Å for a committee,
                ``latent_distance`` (atoms) for a single model.

        Raises:
            ExtrapolationError: A threshold is exceeded and the action is ``stop``.
        """
        found = [excess for measure in self._measures if (excess := measure(atoms, extras))]
        self.excesses = tuple(found)
        for excess in found:
            self.counts[excess.measure] = self.counts.get(excess.measure, 0) + 1
        if not found:
            return
        if self.action == "stop":
            raise ExtrapolationError(found, atoms)
        if self.collection is not None:
            self.collection.add(atoms, {excess.measure: excess.value for excess in found})
            return
        news = [excess for excess in found if self.counts[excess.measure] == 1]
        if news:
            warnings.warn(
                f"The structure is outside the training distribution: {_listed(news)}. Further "
                "structures are counted in calc.guard.counts without a warning.",
                ExtrapolationWarning,
                stacklevel=2,
            )


_Measure = Callable[[ase.Atoms, Mapping[str, Any]], Excess | None]


def _measures(models: Sequence[EnergyModel], thresholds: Thresholds) -> list[_Measure]:
    """Return the checks that are possible with these models."""
    found = [c for c in map(calibration_of, models) if c is not None]
    measures: list[_Measure] = []
    if len(models) > 1:
        spread = thresholds.force_spread
        if spread is None:
            if not found:
                raise ValueError(
                    "on_extrapolation needs a threshold for the committee, but its models have no "
                    "calibration. Run lkm-train calibrate MODEL DATA for one of them, or pass "
                    "Thresholds(force_spread=...) in eV/Å."
                )
            spread = float(np.mean([c.force_error["99.9"] for c in found]))
        told = "the force spread of the committee on {} is {:.3g} eV/Å (threshold {:.3g})"
        measures.append(partial(_largest, "force_spread", spread, told))
    elif not found:
        raise ValueError(
            "on_extrapolation needs a calibrated model, but the model file has no calibration. Run "
            "lkm-train calibrate MODEL DATA, or use a committee."
        )
    else:
        told = (
            "the latent distance of {} is {:.3g} (threshold {:.3g}; 1 is the largest of its "
            "element on held-out frames)"
        )
        measures.append(partial(_largest, "latent_distance", thresholds.latent_distance, told))
    if thresholds.closest > 0 and not found:
        warnings.warn(
            "No model of the committee has a calibration, so the guard cannot detect atoms that "
            "are too close to each other. Run lkm-train calibrate MODEL DATA, or pass "
            "Thresholds(closest=0.0).",
            stacklevel=2,
        )
    if found and thresholds.closest > 0:
        # A distance must be within the training frames of all members.
        table = np.max([c.closest_table() for c in found], axis=0)
        measures.append(partial(_closest, thresholds.closest * table))
    return measures


def _largest(
    measure: str, threshold: float, told: str, atoms: ase.Atoms, extras: Mapping[str, Any]
) -> Excess | None:
    """Check the largest value of a per-atom measure."""
    values = np.asarray(extras[measure])
    worst = int(values.argmax())
    value = float(values[worst])
    if value <= threshold:
        return None
    text = told.format(_named(atoms, worst), value, threshold)
    return Excess(measure, (worst,), value, threshold, text)


def _closest(
    table: NDArray[np.float64], atoms: ase.Atoms, _extras: Mapping[str, Any]
) -> Excess | None:
    """Check the distances of atoms against ``table``, minimum distances by two atomic numbers."""
    numbers, positions, cell = atoms.numbers, atoms.positions, np.asarray(atoms.cell.complete())
    present = np.unique(numbers)
    reach = table[np.ix_(present, present)].max()
    (first, second), distances = edges_within(positions, reach, cell, atoms.pbc)
    if not len(first):
        return None
    thresholds = table[numbers[first], numbers[second]]
    worst = int((distances / thresholds).argmin())
    value, threshold = float(distances[worst]), float(thresholds[worst])
    if value >= threshold:
        return None
    pair = (int(first[worst]), int(second[worst]))
    text = (
        f"{_named(atoms, pair[0])} and {_named(atoms, pair[1])} are {value:.3g} Å apart, closer "
        f"than any such pair in the training frames (threshold {threshold:.3g})"
    )
    return Excess("closest", pair, value, threshold, text)


def _named(atoms: ase.Atoms, index: int) -> str:
    return f"atom {index} ({atoms.symbols[index]})"


def _listed(excesses: Sequence[Excess]) -> str:
    return "; ".join(excess.text for excess in excesses)
