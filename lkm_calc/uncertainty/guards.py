"""Guards: notice that a simulation has left what its model was trained on."""

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
"""What to do with a structure that is outside."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """From where on a structure counts as outside.

    ``inf`` switches the first two off, 0 the last.
    """

    force_spread: float | None = None
    """Of a committee: largest spread of the force on an atom in eV/Å. Where None, the 99.9 %
    quantile of the force errors on held-out frames, the mean of that of the members."""
    latent_distance: float = 1.3
    """Of a single model: multiple of the largest value of the element on held-out frames."""
    closest: float = 0.9
    """Multiple of the closest distance of the two elements in the training frames."""


class Excess(NamedTuple):
    """By how much a structure is outside."""

    measure: str
    """``force_spread``, ``latent_distance`` or ``closest``."""
    atoms: tuple[int, ...]
    """The atom where it is worst, or the two of a pair."""
    value: float
    threshold: float
    text: str
    """All of it in words."""


class ExtrapolationWarning(UserWarning):
    """A structure is outside what the model was trained on."""


class ExtrapolationError(RuntimeError):
    """A calculation was refused as the structure is outside what the model was trained on.

    Args:
        excesses: What is outside, each measure once.
        atoms: The structure; a copy is kept, without a calculator.
    """

    def __init__(self, excesses: Sequence[Excess], atoms: ase.Atoms) -> None:
        self.excesses = tuple(excesses)
        self.atoms = atoms.copy()
        super().__init__(
            f"The structure is outside what the model was trained on: {_listed(excesses)}. It is "
            "this exception's `atoms`; label it and train with it, or raise the threshold."
        )


class Guard:
    """Compare each structure with what its models were trained on.

    - ``warn`` warns once for each measure, however many steps follow; ``counts`` counts on.
    - ``stop`` raises an :class:`ExtrapolationError`.
    - ``save`` adds the structure to a file, unless one like it is there: see
      :class:`lkm_calc.uncertainty.Collection`.

    Args:
        models: The model, or the members of a committee.
        action: What to do.
        file: Where ``save`` puts structures.
        thresholds: Where the limits are.

    Raises:
        ValueError: The action is unknown, a model lacks the calibration that a threshold is to
            come from or holds a damaged one, or the file cannot be read.
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
                "guard."
            )
        self.action = action
        self.thresholds = thresholds or Thresholds()
        self.counts: dict[str, int] = {}
        """Calculations that were outside, by measure."""
        self.collection = Collection(file) if action == "save" else None
        self._measures = _measures(models, self.thresholds)

    def __call__(self, atoms: ase.Atoms, extras: Mapping[str, Any]) -> None:
        """Judge a structure that was computed.

        Args:
            atoms: The structure.
            extras: What was computed for it: ``force_spread`` (atoms) in eV/Å of a committee,
                ``latent_distance`` (atoms) of a single model.

        Raises:
            ExtrapolationError: It is outside, and the action is ``stop``.
        """
        found = [excess for measure in self._measures if (excess := measure(atoms, extras))]
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
                f"The structure is outside what the model was trained on: {_listed(news)}. Later "
                "structures are counted in calc.guard.counts without a warning.",
                ExtrapolationWarning,
                stacklevel=2,
            )


_Measure = Callable[[ase.Atoms, Mapping[str, Any]], Excess | None]


def _measures(models: Sequence[EnergyModel], thresholds: Thresholds) -> list[_Measure]:
    """Return what can be judged with these models."""
    found = [c for c in map(calibration_of, models) if c is not None]
    measures: list[_Measure] = []
    if len(models) > 1:
        spread = thresholds.force_spread
        if spread is None:
            if not found:
                raise ValueError(
                    "on_extrapolation needs a threshold for the committee: its models hold no "
                    "calibration. Run lkm-train calibrate MODEL DATA for one of them, or give "
                    "Thresholds(force_spread=...) in eV/Å."
                )
            spread = float(np.mean([c.force_error["99.9"] for c in found]))
        told = "the committee's forces on {} spread by {:.3g} eV/Å (threshold {:.3g})"
        measures.append(partial(_largest, "force_spread", spread, told))
    elif not found:
        raise ValueError(
            "on_extrapolation needs to know what the model was trained on, and its file does not "
            "say. Run lkm-train calibrate MODEL DATA, or use a committee."
        )
    else:
        told = (
            "the latent distance of {} is {:.3g} (threshold {:.3g}; 1 is the largest of its "
            "element on held-out frames)"
        )
        measures.append(partial(_largest, "latent_distance", thresholds.latent_distance, told))
    if thresholds.closest > 0 and not found:
        warnings.warn(
            "None of the committee's models tells which distances of atoms it was trained on, so "
            "the guard does not notice atoms that come too close. Run lkm-train calibrate MODEL "
            "DATA, or give Thresholds(closest=0.0).",
            stacklevel=2,
        )
    if found and thresholds.closest > 0:
        # What one member of a committee has not seen, the committee has not.
        table = np.max([c.closest_table() for c in found], axis=0)
        measures.append(partial(_closest, thresholds.closest * table))
    return measures


def _largest(
    measure: str, threshold: float, told: str, atoms: ase.Atoms, extras: Mapping[str, Any]
) -> Excess | None:
    """Judge a measure of each atom by its largest value."""
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
    """Judge the distances of atoms; ``table`` holds the least ones by two atomic numbers."""
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
        f"than such atoms in the training frames (threshold {threshold:.3g})"
    )
    return Excess("closest", pair, value, threshold, text)


def _named(atoms: ase.Atoms, index: int) -> str:
    return f"atom {index} ({atoms.symbols[index]})"


def _listed(excesses: Sequence[Excess]) -> str:
    return "; ".join(excess.text for excess in excesses)
