"""Names of labels in files, and suggestions which entries of a file could be labels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

ENERGY_NAMES = ("energy", "Energy", "REF_energy", "total_energy", "free_energy")
"""Default names of energies; the first one that occurs in any frame is used for the whole file."""
FORCE_NAMES = ("forces", "force", "Forces", "REF_forces")
"""Names of forces, likewise."""
STRESS_NAMES = ("stress", "REF_stress")
"""Names of the stress, likewise."""
VIRIAL_NAMES = ("virial", "virials", "REF_virial", "REF_virials")
"""Names of the virial, likewise; stress = −virial / volume, as in ASE, GAP, NequIP and MACE."""


class LabelKeys(NamedTuple):
    """Names of the labels in a file; empty for the default names."""

    energy: str = ""
    forces: str = ""
    stress: str = ""
    virial: str = ""

    @property
    def stress_names(self) -> Sequence[str]:
        """Names to search for the stress; none by default if the virial is named."""
        return (self.stress,) if self.stress else () if self.virial else STRESS_NAMES

    @property
    def virial_names(self) -> Sequence[str]:
        """Names to search for the virial; none by default if the stress is named."""
        return (self.virial,) if self.virial else () if self.stress else VIRIAL_NAMES

    def given(self) -> dict[str, str]:
        """Return the non-empty names, by the name of their option."""
        return {f"{kind}_key": name for kind, name in self._asdict().items() if name}


USUAL_KEYS = LabelKeys()
"""Default names for all labels."""


class Entry(NamedTuple):
    """A number or numeric array in the frames of a file."""

    place: str
    """"info", "arrays" or "results" (of a calculator)."""
    name: str
    shape: str
    """Description, for example "number" or "atoms × 3"."""

    def __str__(self) -> str:
        return f"{self.name} ({self.shape})"


_ASE_ARRAYS = ("numbers", "positions", "tags", "momenta", "masses")
"""Arrays of ASE itself, which are never labels."""
_SHAPES: Mapping[str, tuple[str, ...]] = {
    "energy": ("number",),
    "forces": ("atoms × 3", "3 × 3"),
    "stress": ("6", "9", "3 × 3"),
    "virial": ("6", "9", "3 × 3"),
}
"""Possible shapes of labels."""
_HINTS: Mapping[str, tuple[str, str]] = {
    "energy": ("energy", "e"),
    "forces": ("force", "f"),
    "stress": ("stress", ""),
    "virial": ("virial", ""),
}
"""Substring or full name, in lower case, by which a label is recognised."""


def numeric_entries(images: Iterable[Atoms]) -> list[Entry]:
    """Return the numeric entries of the frames of a file, each name once."""
    found: dict[tuple[str, str], Entry] = {}
    for atoms in images:
        for place, name, value in _values(atoms):
            array = np.asarray(value)
            if (place, name) not in found and array.dtype.kind in "iuf":
                shape = _shape(array, len(atoms), place == "arrays")
                found[place, name] = Entry(place, name, shape)
    return list(found.values())


def _values(atoms: Atoms) -> Iterator[tuple[str, str, Any]]:
    """Yield place, name and value of all entries of a structure; database rows count as info."""
    info = {k: v for k, v in atoms.info.items() if k not in ("data", "key_value_pairs")}
    rows = {**atoms.info.get("data", {}), **atoms.info.get("key_value_pairs", {})}
    arrays = {name: v for name, v in atoms.arrays.items() if name not in _ASE_ARRAYS}
    results = getattr(atoms.calc, "results", {})
    for place, values in (("info", info | rows), ("arrays", arrays), ("results", results)):
        yield from ((place, str(name), value) for name, value in values.items())


def _shape(array: NDArray[Any], n_atoms: int, per_atom: bool) -> str:
    """Return a description of the shape of an entry."""
    if array.size == 1 and not per_atom:
        return "number"
    sizes = [str(n) for n in array.shape]
    if array.shape and array.shape[0] == n_atoms and (per_atom or array.shape[1:] == (3,)):
        # In a database, 3 × 3 numbers of a molecule with three atoms may be a tensor.
        sizes[0] = "atoms" if per_atom or n_atoms != 3 else "3"
    return " × ".join(sizes)


def candidates(kind: str, entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries whose shape and name resemble a label, the most likely first.

    Args:
        kind: "energy", "forces", "stress" or "virial".
        entries: Entries of the file.
    """
    part, whole = _HINTS[kind]
    fitting = [
        entry
        for entry in entries
        if entry.shape in _SHAPES[kind]
        and (part in entry.name.lower() or entry.name.lower() == whole)
    ]
    return sorted(fitting, key=lambda entry: part not in entry.name.lower())


def option(kind: str, name: str) -> str:
    """Return how to set the name of a label for fit and for the other commands."""
    return f"set --data.{kind}_key {name} (--{kind}-key of check-data and evaluate)"


def advice(kind: str, entries: Sequence[Entry]) -> str:
    """Return sentences that list the entries of a file and the option that selects a label."""
    if not entries:
        return "The file contains no other numbers."
    listed = [
        f"{place}: {', '.join(str(e) for e in entries if e.place == place)}"
        for place in ("info", "arrays", "results")
        if any(e.place == place for e in entries)
    ]
    likely = candidates(kind, entries)
    name = likely[0].name if likely else "NAME"
    return f"The file contains {'; '.join(listed)}. To use one of them, {option(kind, name)}."
