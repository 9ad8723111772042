"""Structures collected for labelling, each kind once."""

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
"""Distances of each pair of elements that two structures are compared by."""


class Collection:
    """An extxyz file of structures without labels, none like another.

    It is written anew, whole or not at all, with every structure: a simulation may be interrupted
    at any time, and a later one goes on with the same file. What other simulations add to it
    meanwhile is kept, unless two write in the same instant. Energies and forces of a model are left
    out, so that they cannot be taken for labels.

    Args:
        file: The file; structures that it holds already count.
        tolerance: Two structures are alike if none of their sorted distances, pairs of elements
            apart, differ by this much in Å. Turned, moved, and with equal atoms swapped, a
            structure is like itself.
        limit: Most structures in the file, so that a simulation that blew up fills no disk.

    Raises:
        ValueError: The file is there, but cannot be read.
    """

    def __init__(self, file: str | Path, tolerance: float = 0.2, limit: int = 1000) -> None:
        # Absolute: workflow managers change the working directory between two calculations.
        self.file = expanded(file).absolute()
        self.tolerance, self.limit = tolerance, limit
        self._fingerprints: dict[bytes, list[NDArray[np.float32]]] = defaultdict(list)
        self._text = ""
        self._read()

    def _read(self) -> None:
        """Take note of what the file holds, if another one has written to it."""
        try:
            text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
            if text == self._text:
                return
            self._fingerprints.clear()
            for atoms in ase.io.read(io.StringIO(text), ":", format="extxyz"):
                self._note(atoms)
        except (XYZError, KeyError, OSError, ValueError) as error:
            raise ValueError(
                f"{self.file} cannot be read as extxyz ({error}). Name another file for the "
                "structures to collect, or move this one away."
            ) from error
        self._text = text if not text or text.endswith("\n") else text + "\n"

    def __len__(self) -> int:
        return sum(map(len, self._fingerprints.values()))

    def add(self, atoms: ase.Atoms, info: Mapping[str, float]) -> bool:
        """Add a structure, with figures to its comment line, and tell whether it is new.

        Raises:
            ValueError: Another program has made the file unreadable.
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
        """Remember what a structure looks like, or tell that one like it is known."""
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

    Nearest images count where it is periodic, and with them the lengths of the cell vectors and of
    their sums. Of a pair of elements with more than MAX_DISTANCES,
    as many are taken evenly from the sorted ones, the closest among them.
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
