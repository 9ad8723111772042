"""Isolated atoms among the frames of a file, which define the energies of free atoms."""

from collections.abc import Mapping
from typing import NamedTuple

import ase
import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from lkm_calc import EnergyModel, Graph

from .frames import DataError, Frames, Split, random_split

MAX_DIFFERENCE = 1e-3
"""Tolerance in eV for energies of isolated atoms of one element."""


class IsolatedAtoms(NamedTuple):
    """Energies of the isolated atoms in a file."""

    energies: dict[int, float]
    """In eV, by atomic number."""
    n_frames: int
    """Number of frames that are isolated atoms."""

    def by_symbol(self) -> dict[str, float]:
        """Return the energies by element symbol."""
        return {chemical_symbols[z]: energy for z, energy in self.energies.items()}


def isolated_atoms(frames: Frames, source: str) -> IsolatedAtoms:
    """Return the energies of the isolated atoms among the frames; their forces are ignored.

    Raises:
        DataError: Energies of one element differ.
    """
    alone = np.flatnonzero(frames.isolated)
    numbers, energies = frames.numbers[frames.starts[alone]], frames.energies[alone]
    found = {}
    for number in np.unique(numbers).tolist():
        values = energies[numbers == number]
        if np.ptp(values) > MAX_DIFFERENCE:
            listed = ", ".join(f"{value:.6f}" for value in values[:5])
            raise DataError(
                f"{source}: isolated atoms of {chemical_symbols[number]} have different energies "
                f"({listed} eV, in frames {alone[numbers == number][:5].tolist()}). Keep the one "
                "in its ground state, at the level of theory of the other frames."
            )
        found[number] = float(values.mean())
    return IsolatedAtoms(found, len(alone))


def structures_of(frames: Frames, source: str) -> Frames:
    """Return the frames without isolated atoms.

    Raises:
        DataError: There are no other frames.
    """
    return frames.select(_structures(frames, source)) if frames.isolated.any() else frames


def split_structures(
    frames: Frames, n_train: int, n_validation: int, seed: int, source: str, n_test: int = 0
) -> Split:
    """Draw the frames of each part like :func:`random_split`, without isolated atoms.

    Raises:
        DataError: There are only isolated atoms, or as for random_split.
    """
    rows = _structures(frames, source)
    n_isolated = len(frames) - len(rows)
    split = random_split(len(rows), n_train, n_validation, seed, n_isolated, n_test)
    return Split(rows[split.train], rows[split.validation], rows[split.test])


def drawn_structures(
    frames: Frames, number: int | str, seed: int, name: str, source: str
) -> NDArray[np.int64]:
    """Return the indices of some structures of a file, or of all, without isolated atoms.

    Args:
        frames: The frames of the file.
        number: How many to draw; "auto" for all.
        seed: Random seed.
        name: "train" or "validation", for messages.
        source: The file, for messages.

    Raises:
        DataError: There are only isolated atoms, or fewer structures.
    """
    rows = _structures(frames, source)
    if not isinstance(number, int):
        return rows
    if number > len(rows):
        raise DataError(
            f"data.n_{name} = {number}, but {source} has {len(rows)} frames. Reduce it, or leave "
            "it out to use all."
        )
    return np.sort(np.random.default_rng(seed).permutation(rows)[:number])


def _structures(frames: Frames, source: str) -> NDArray[np.int64]:
    """Return the indices of the frames that are not isolated atoms."""
    rows = np.flatnonzero(~frames.isolated)
    if not len(rows):
        raise DataError(
            f"{source} contains isolated atoms only ({len(frames)} frame(s)), which determine "
            "reference energies but cannot train a model. Add structures of two atoms or more."
        )
    return rows


def atom_errors(model: EnergyModel, energies: Mapping[int, float]) -> dict[str, dict[str, float]]:
    """Return labels and predictions for isolated atoms in eV, and errors in meV, by symbol.

    Elements that the model was not trained on are omitted.
    """
    found = {}
    for number, label in energies.items():
        if not model.known_elements[number]:
            continue
        with torch.no_grad():
            atom = Graph.from_atoms(ase.Atoms([number]), model.cutoff, model.device)
            predicted = float(model(atom).energy)
        found[chemical_symbols[number]] = {
            "label": label,
            "predicted": predicted,
            "error": 1000 * (predicted - label),
        }
    return found
