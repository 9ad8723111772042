"""One door to all readers: a path in, frames in eV and Å out."""

from collections.abc import Mapping
from pathlib import Path

from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from lkm_calc.files import expanded, is_xyz

from ..data import DataError, Frames
from .arrays import npz_names
from .chignolin import read_chignolin
from .files import read_ase
from .hdf5 import read_hdf5
from .label_names import USUAL_KEYS, LabelKeys
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
    keys: LabelKeys = USUAL_KEYS,
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
        keys: Names of the labels in files that ASE reads, in npz in the layout of MD17 (energies
            and forces) and in HDF5 (not of a virial); empty for the usual ones.

    Returns:
        Frames in eV and Å.

    Raises:
        DataError: The file is missing or of an unknown kind, units or names of labels are given for
            a format that fixes them, or the reader of the format refuses the file.
    """
    path = expanded(path)
    if not path.is_file():
        found = "is no file" if path.exists() else "does not exist"
        raise DataError(f"{path} {found}. Give the path of a data file.")
    name = detect_format(path, keys) if format == "auto" else format
    if name not in FORMATS:
        raise DataError(f"format is {format!r}; choose one of auto, {', '.join(FORMATS)}.")
    if name == "ase":
        return read_ase(path, energy_unit or "eV", length_unit or "Å", check_units, keys)
    _check_keys(path, name, keys)
    if name == "md17":
        units = energy_unit or "kcal/mol", length_unit or "Å"
        return read_md17(path, labels, check_units, *units, keys)
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
            return read_hdf5(path, check_units, keys)


_NAMED: Mapping[str, tuple[str, ...]] = {
    "md17": ("energy_key", "forces_key"),
    "hdf5": ("energy_key", "forces_key", "stress_key"),
}
"""Labels that may have other names, by format; of those that ASE reads, all."""


def _check_keys(path: Path, format: str, keys: LabelKeys) -> None:
    """Raise a DataError if a label is named that has one name in the format, or none."""
    named = _NAMED.get(format, ())
    fixed = [f"{key} {name!r}" for key, name in keys.given().items() if key not in named]
    if fixed:
        choice = f"only {' and '.join(named)} can be given" if named else "leave them empty"
        raise DataError(
            f"{path}: {', '.join(fixed)} is given, but the format {format!r} fixes what it is "
            f"called; {choice}."
        )


def detect_format(path: Path, keys: LabelKeys = USUAL_KEYS) -> str:
    """Return the format of a file, a key of FORMATS.

    Args:
        path: The file.
        keys: Names of the labels, by which the layout of MD17 is told as by its own.

    Raises:
        DataError: The file is none of those that are read, or a damaged npz file.
    """
    if path.suffix.lower() == ".npz":
        return _npz_format(path, keys)
    if path.suffix.lower() in (".h5", ".hdf5"):
        return "hdf5"
    try:
        known = is_xyz(path) or filetype(str(path)) in ioformats
    except (UnknownFileTypeError, OSError, EOFError):  # the last two of damaged archives
        known = False
    if not known:
        raise DataError(f"{path} is of an unknown kind. These are read: {_choice()}.")
    return "ase"


def _npz_format(path: Path, keys: LabelKeys) -> str:
    """Return the format of an npz file by the names of its arrays."""
    present = npz_names(path)
    if present >= {"z", "R", keys.energy or "E", keys.forces or "F"}:
        return "md17"
    for name, layouts in _NPZ_KEYS.items():
        if any(present >= keys for keys in layouts):
            return name
    raise DataError(
        f"{path} holds the arrays {', '.join(sorted(present)) or 'none'}, which is no layout that "
        f"is known. These are read: {_choice()}. Rename its arrays, or convert it; in the layout "
        "of MD17 other labels can be named with --data.energy_key and --data.forces_key."
    )


def _choice() -> str:
    """Return the formats in words."""
    return "; ".join(f"{name}: {text}" for name, text in FORMATS.items())
