"""One door to all readers: a path in, frames in eV and Å out."""

from collections.abc import Mapping
from pathlib import Path

from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from lkm_calc.structures import is_xyz

from .arrays import npz_names
from .chignolin import read_chignolin
from .files import read_ase
from .frames import DataError, Frames
from .hdf5 import read_hdf5
from .md17 import Labels, read_md17
from .qm9 import read_qm9

FORMATS: Mapping[str, str] = {
    "md17": "npz of MD17 (z, R, E, F) or revised MD17 (nuclear_charges, coords, energies, forces)",
    "chignolin": "npz with flat arrays (N, Z, R, E, F)",
    "qm9": "npz of QM9 (N, Z, R, U0 and other properties)",
    "hdf5": "HDF5 file of lkm-calc (.h5, .hdf5)",
    "ase": "all that ASE reads (.xyz, .extxyz, .traj, .db, .json, outputs of codes)",
}
"""What is read, by the name of its format."""

_NPZ_KEYS: Mapping[str, tuple[set[str], ...]] = {
    "md17": ({"z", "R", "E", "F"}, {"nuclear_charges", "coords"}),
    "chignolin": ({"N", "Z", "R", "E", "F"},),
    "qm9": ({"N", "Z", "R", "U0"},),
}
"""Arrays by which the formats of npz files are told apart."""


def read_frames(
    path: str | Path,
    format: str = "auto",
    labels: Labels = "revised",
    target: str = "U0",
    energy_unit: str = "",
    length_unit: str = "",
    check_units: bool = True,
) -> Frames:
    """Read a data file of any format.

    Args:
        path: The file.
        format: A key of FORMATS, or "auto" to tell by the name and, of npz files, the arrays.
        labels: Of rMD17 only: the "revised" labels or the "original" ones of MD17.
        target: Of QM9 only: the property to read.
        energy_unit: Of files that ASE reads, and npz in the layout of MD17: the unit of their
            energies; empty for eV and kcal/mol.
        length_unit: Likewise of their lengths; empty for Å.
        check_units: Refuse energies and forces that are not credible in the format's units.

    Returns:
        Frames in eV and Å.

    Raises:
        DataError: The file is missing or of an unknown kind, units are given for a format that
            fixes them, or the reader of the format refuses the file.
    """
    path = Path(path)
    if not path.is_file():
        found = "is no file" if path.exists() else "does not exist"
        raise DataError(f"{path} {found}. Give the path of a data file.")
    name = detect_format(path) if format == "auto" else format
    if name not in FORMATS:
        raise DataError(f"format is {format!r}; choose one of auto, {', '.join(FORMATS)}.")
    if name == "ase":
        return read_ase(path, energy_unit or "eV", length_unit or "Å", check_units)
    if name == "md17":
        return read_md17(path, labels, check_units, energy_unit or "kcal/mol", length_unit or "Å")
    if energy_unit or length_unit:
        raise DataError(
            f"{path}: units are given (energy {energy_unit!r}, length {length_unit!r}), but the "
            f"format {name!r} fixes its own. Leave both empty."
        )
    match name:
        case "chignolin":
            return read_chignolin(path, check_units)
        case "qm9":
            return read_qm9(path, target)
        case _:
            return read_hdf5(path, check_units)


def detect_format(path: Path) -> str:
    """Return the format of a file, a key of FORMATS.

    Raises:
        DataError: The file is none of those that are read, or a damaged npz file.
    """
    if path.suffix.lower() == ".npz":
        return _npz_format(path)
    if path.suffix.lower() in (".h5", ".hdf5"):
        return "hdf5"
    try:
        known = is_xyz(path) or filetype(str(path)) in ioformats
    except (UnknownFileTypeError, OSError, EOFError):  # the last two of damaged archives
        known = False
    if not known:
        raise DataError(f"{path} is of an unknown kind. These are read: {_choice()}.")
    return "ase"


def _npz_format(path: Path) -> str:
    """Return the format of an npz file by the names of its arrays."""
    present = npz_names(path)
    for name, layouts in _NPZ_KEYS.items():
        if any(present >= keys for keys in layouts):
            return name
    raise DataError(
        f"{path} holds the arrays {', '.join(sorted(present)) or 'none'}, which is no layout that "
        f"is known. These are read: {_choice()}. Rename its arrays, or convert it."
    )


def _choice() -> str:
    """Return the formats in words."""
    return "; ".join(f"{name}: {text}" for name, text in FORMATS.items())
