"""The names under which files keep their labels, and which of their numbers could be labels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

ENERGY_NAMES = ("energy", "Energy", "REF_energy", "total_energy", "free_energy")
"""Where energies are sought, the first that any frame has; one name serves the whole file."""
FORCE_NAMES = ("forces", "force", "Forces", "REF_forces")
"""Names of forces, likewise."""
STRESS_NAMES = ("stress", "REF_stress")
"""Names of the stress, likewise."""
VIRIAL_NAMES = ("virial", "virials", "REF_virial", "REF_virials")
"""Names of the virial, likewise; stress = −virial / volume, as in ASE, GAP, NequIP and MACE."""


class LabelKeys(NamedTuple):
    """The names of the labels in a file; empty for those that are sought by default."""

    energy: str = ""
    forces: str = ""
    stress: str = ""
    virial: str = ""

    @property
    def stress_names(self) -> Sequence[str]:
        """Where the stress is sought: not by default if the virial has been named."""
        return (self.stress,) if self.stress else () if self.virial else STRESS_NAMES

    @property
    def virial_names(self) -> Sequence[str]:
        """Where the virial is sought: not by default if the stress has been named."""
        return (self.virial,) if self.virial else () if self.stress else VIRIAL_NAMES

    def given(self) -> dict[str, str]:
        """Return those that are not empty, by the names of their options."""
        return {f"{kind}_key": name for kind, name in self._asdict().items() if name}


USUAL_KEYS = LabelKeys()
"""Every label under one of its default names."""


class Entry(NamedTuple):
    """A number or an array of numbers that frames of a file hold under one name."""

    place: str
    """Where: "info", "arrays" or "results" (of a calculator)."""
    name: str
    shape: str
    """In words, "number" or "atoms × 3" for example."""

    def __str__(self) -> str:
        return f"{self.name} ({self.shape})"


_ASE_ARRAYS = ("numbers", "positions", "tags", "momenta", "masses")
"""Arrays that ASE keeps itself, and that are never labels."""
_SHAPES: Mapping[str, tuple[str, ...]] = {
    "energy": ("number",),
    "forces": ("atoms × 3", "3 × 3"),
    "stress": ("6", "9", "3 × 3"),
    "virial": ("6", "9", "3 × 3"),
}
"""Shapes that a label may have."""
_HINTS: Mapping[str, tuple[str, str]] = {
    "energy": ("energy", "e"),
    "forces": ("force", "f"),
    "stress": ("stress", ""),
    "virial": ("virial", ""),
}
"""What the name of a label contains, or is, in small letters."""


def numeric_entries(images: Iterable[Atoms]) -> list[Entry]:
    """Return what the frames of a file hold in numbers, each name once, in order of appearance."""
    found: dict[tuple[str, str], Entry] = {}
    for atoms in images:
        for place, name, value in _values(atoms):
            array = np.asarray(value)
            if (place, name) not in found and array.dtype.kind in "iuf":
                shape = _shape(array, len(atoms), place == "arrays")
                found[place, name] = Entry(place, name, shape)
    return list(found.values())


def _values(atoms: Atoms) -> Iterator[tuple[str, str, Any]]:
    """Yield place, name and value of all that a structure holds; rows of databases as info."""
    info = {k: v for k, v in atoms.info.items() if k not in ("data", "key_value_pairs")}
    rows = {**atoms.info.get("data", {}), **atoms.info.get("key_value_pairs", {})}
    arrays = {name: v for name, v in atoms.arrays.items() if name not in _ASE_ARRAYS}
    results = getattr(atoms.calc, "results", {})
    for place, values in (("info", info | rows), ("arrays", arrays), ("results", results)):
        yield from ((place, str(name), value) for name, value in values.items())


def _shape(array: NDArray[Any], n_atoms: int, per_atom: bool) -> str:
    """Return the shape of an entry in words."""
    if array.size == 1 and not per_atom:
        return "number"
    sizes = [str(n) for n in array.shape]
    if array.shape and array.shape[0] == n_atoms and (per_atom or array.shape[1:] == (3,)):
        # A row of a database may hold 3 × 3 of a molecule of three atoms, and mean a tensor.
        sizes[0] = "atoms" if per_atom or n_atoms != 3 else "3"
    return " × ".join(sizes)


def candidates(kind: str, entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries that by shape and name look like a label, the likeliest first.

    Args:
        kind: "energy", "forces", "stress" or "virial".
        entries: What the file holds.
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
    """Say how to give the name of a label, in a configuration and to the other commands."""
    return f"give --data.{kind}_key {name} (--{kind}-key of check-data and evaluate)"


def advice(kind: str, entries: Sequence[Entry]) -> str:
    """Return sentences that list what a file holds, and tell which option names a label."""
    if not entries:
        return "There are no other numbers."
    listed = [
        f"{place}: {', '.join(str(e) for e in entries if e.place == place)}"
        for place in ("info", "arrays", "results")
        if any(e.place == place for e in entries)
    ]
    likely = candidates(kind, entries)
    name = likely[0].name if likely else "NAME"
    return f"These numbers are there: {'; '.join(listed)}. If one is meant, {option(kind, name)}."
