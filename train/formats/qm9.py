"""Reader of QM9: 130,831 molecules with twelve properties (Ramakrishnan et al. 2014).

Keys of the npz file, per molecule: N (number of atoms), mu, alpha, homo, lumo, gap, r2, zpve, U0,
U, H, G and Cv; per atom, flat: Z and R. Energies are in Hartree, lengths in Å, dipoles in Debye,
polarisabilities in bohr³, extents in bohr², heat capacities in cal/mol/K. :func:`pack_qm9` converts
the original files of doi.org/10.6084/m9.figshare.c.978904.
"""

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers

from lkm_calc.files import expanded, replacing
from lkm_calc.units import HARTREE

from ..data import DataError, Frames, check_frames
from .arrays import flat_starts, load_npz, reading, whole_numbers


class Target(NamedTuple):
    """A property of QM9."""

    unit: str
    """The usual unit, in which it is returned."""
    factor: float
    """Conversion factor from the unit in the file."""


TARGETS: Mapping[str, Target] = {
    "mu": Target("Debye", 1.0),
    "alpha": Target("bohr^3", 1.0),
    "homo": Target("eV", HARTREE),
    "lumo": Target("eV", HARTREE),
    "gap": Target("eV", HARTREE),
    "r2": Target("bohr^2", 1.0),
    "zpve": Target("eV", HARTREE),
    "U0": Target("eV", HARTREE),
    "U": Target("eV", HARTREE),
    "H": Target("eV", HARTREE),
    "G": Target("eV", HARTREE),
    "Cv": Target("cal/mol/K", 1.0),
}
"""Dipole moment, polarisability, orbital energies and their gap, electronic spatial extent,
zero-point energy, energy at 0 K and at 298 K, enthalpy, free energy, heat capacity."""


def read_qm9(path: str | Path, target: str = "U0") -> Frames:
    """Read one property of the molecules of a QM9 npz file.

    Args:
        path: The file.
        target: A key of TARGETS.

    Returns:
        Frames whose ``energies`` are the property in its usual unit, without forces.

    Raises:
        DataError: The target is unknown, or the file is missing or damaged, lacks keys, or has
            inconsistent arrays.
    """
    path = expanded(path)
    if target not in TARGETS:
        raise DataError(f"target is {target!r}; choose one of {', '.join(TARGETS)}.")
    arrays = load_npz(path, ("N", "Z", "R", target))
    starts = flat_starts(path, arrays, by_frame=(target,), vectors=("R",))
    frames = Frames(
        numbers=whole_numbers(path, "Z", arrays["Z"]),
        positions=arrays["R"].astype(np.float64),
        energies=arrays[target].astype(np.float64) * TARGETS[target].factor,
        starts=starts,
        energy_unit=TARGETS[target].unit,
    )
    check_frames(frames, str(path), check_units=False)
    return frames


N_UNCHARACTERISED = 3054
"""Number of molecules in QM9 whose relaxed geometry is inconsistent with their bonds."""
_PROPERTIES = ("A", "B", "C", *TARGETS)
"""Order of the numbers on the second line of an original file, after "gdb" and the index."""


class _Molecule(NamedTuple):
    """One original file."""

    id: int
    properties: list[float]
    numbers: list[int]
    positions: list[list[float]]


def pack_qm9(archive: str | Path, uncharacterised: str | Path, path: str | Path) -> None:
    """Write the npz file that :func:`read_qm9` reads from the original files of QM9.

    Args:
        archive: dsgdb9nsd.xyz.tar.bz2 with a small text file for each molecule.
        uncharacterised: uncharacterized.txt, the list of molecules to leave out.
        path: Path of the npz file.

    Raises:
        DataError: A file is missing or damaged.
    """
    with reading(Path(uncharacterised), "list of uncharacterised molecules"):
        excluded = _excluded(Path(uncharacterised).read_text(encoding="utf-8"))
    with reading(Path(archive), "archive of QM9"):
        kept = sorted(m for m in _molecules(Path(archive)) if m.id not in excluded)
        columns = np.array([m.properties for m in kept]).T
        arrays = {
            "id": np.array([m.id for m in kept]),
            "N": np.array([len(m.numbers) for m in kept]),
            "Z": np.concatenate([m.numbers for m in kept]),
            "R": np.concatenate([m.positions for m in kept]),
            **dict(zip(_PROPERTIES, columns, strict=True)),
        }
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _excluded(text: str) -> set[int]:
    """Return the indices in the list, which has nine header lines and a footer line."""
    indices = {int(line.split()[0]) for line in text.splitlines()[9:-1]}
    if len(indices) != N_UNCHARACTERISED:
        raise DataError(
            f"The list of uncharacterised molecules contains {len(indices)} indices, not "
            f"{N_UNCHARACTERISED}. It is truncated or a different file; download it again."
        )
    return indices


def _molecules(archive: Path) -> Iterator[_Molecule]:
    """Yield the molecules of the archive, in its order."""
    with tarfile.open(archive) as files:
        for member in files:
            file = files.extractfile(member) if member.name.endswith(".xyz") else None
            if file is not None:
                yield _parse(file.read().decode("ascii"))


def _parse(text: str) -> _Molecule:
    """Read an original file: number of atoms, properties, then a line for each atom."""
    # Small numbers are in Mathematica notation: 6.2*^-6.
    lines = text.replace("*^", "e").splitlines()
    _, index, *properties = lines[1].split()
    atoms = [line.split() for line in lines[2 : 2 + int(lines[0])]]
    return _Molecule(
        id=int(index),
        properties=[float(word) for word in properties],
        numbers=[atomic_numbers[row[0]] for row in atoms],
        positions=[[float(word) for word in row[1:4]] for row in atoms],
    )
