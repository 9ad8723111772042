"""Collection of distinct structures for labelling."""

import io
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.io.extxyz import XYZError
from numpy.typing import NDArray

from ..files import expanded, replacing

MAX_DISTANCES = 100
"""Maximum number of distances per pair of elements used to compare structures."""


class Collection:
    """An extxyz file of distinct structures without labels.

    The file is rewritten atomically for every new structure, so a simulation can be interrupted at
    any time and a later one continues with the same file. Structures added by other simulations are
    kept, unless two write at the same instant. Energies and forces of the model are not written, so
    that they are not mistaken for labels.

    Args:
        file: The file; existing structures are taken into account.
        tolerance: Structures are considered equal if all of their sorted distances (by pair of
            elements) agree within this many Å. This is invariant under rotation, translation and
            permutation of like atoms.
        limit: Maximum number of structures in the file.

    Raises:
        ValueError: The file exists but cannot be read.
    """

    def __init__(self, file: str | Path, tolerance: float = 0.2, limit: int = 1000) -> None:
        # Absolute: workflow managers change the working directory between two calculations.
        self.file = expanded(file).absolute()
        self.tolerance, self.limit = tolerance, limit
        self._fingerprints: dict[bytes, list[NDArray[np.float32]]] = defaultdict(list)
        self._text = ""
        self._read()

    def _read(self) -> None:
        """Read the file if it has changed."""
        try:
            text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
            if text == self._text:
                return
            self._fingerprints.clear()
            for atoms in ase.io.read(io.StringIO(text), ":", format="extxyz"):
                self._note(atoms)
        except (XYZError, KeyError, OSError, ValueError) as error:
            raise ValueError(
                f"{self.file} cannot be read as extxyz ({error}). Choose another file for the "
                "collected structures, or move this one."
            ) from error
        self._text = text if not text or text.endswith("\n") else text + "\n"

    def __len__(self) -> int:
        return sum(map(len, self._fingerprints.values()))

    def add(self, atoms: ase.Atoms, info: Mapping[str, float]) -> bool:
        """Add a structure with values for its comment line; return whether it was new.

        Raises:
            ValueError: The file has become unreadable.
        """
        self._read()
        if len(self) >= self.limit or not self._note(atoms):
            return False
        bare = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        bare.info = dict(info)
        text = io.StringIO()
        ase.io.write(text, bare, format="extxyz")
        self._text += text.getvalue()
        with replacing(self.file) as temporary:
            temporary.write_text(self._text, encoding="utf-8")
        return True

    def _note(self, atoms: ase.Atoms) -> bool:
        """Store the fingerprint of a structure; return whether it was new."""
        found = fingerprint(atoms)
        known = self._fingerprints[np.sort(atoms.numbers).tobytes()]
        if len(found) == 0:  # a single atom
            alike = bool(known)
        else:
            alike = any(np.abs(other - found).max() < self.tolerance for other in known)
        if not alike:
            known.append(found)
        return not alike


def fingerprint(atoms: ase.Atoms) -> NDArray[np.float32]:
    """Return the distances of a structure in Å, sorted within each pair of elements.

    For periodic structures these are minimum-image distances, plus the lengths of the cell vectors
    and of their sums. At most MAX_DISTANCES per pair of elements are kept, evenly spaced in the
    sorted list and including the shortest.
    """
    first, second = np.triu_indices(len(atoms), 1)
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))[first, second]
    ends = np.sort(np.stack([atoms.numbers[first], atoms.numbers[second]]), axis=0)
    kinds = ends[0] * 1000 + ends[1]
    parts = [np.empty(0)]
    if atoms.pbc.any():
        a, b, c = atoms.cell.array
        parts.append(np.linalg.norm([a, b, c, a + b, a + c, b + c], axis=1))
    for kind in np.unique(kinds):
        one = np.sort(distances[kinds == kind])
        chosen = np.linspace(0, len(one) - 1, min(len(one), MAX_DISTANCES)).round().astype(int)
        parts.append(one[chosen])
    return np.concatenate(parts).astype(np.float32)
