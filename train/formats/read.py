"""Reading of frames from files of any supported format."""

from collections.abc import Mapping
from pathlib import Path

from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from lkm_calc.files import expanded, is_xyz

from ..config import DataConfig
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
    "ase": "all formats of ASE (.xyz, .extxyz, .traj, .db, .json, outputs of codes)",
}
"""Descriptions of the supported formats."""

_NPZ_KEYS: Mapping[str, tuple[set[str], ...]] = {
    "md17": ({"z", "R", "E", "F"}, {"nuclear_charges", "coords"}),
    "chignolin": ({"N", "Z", "R", "E", "F"},),
    "qm9": ({"N", "Z", "R", "U0"},),
}
"""Arrays by which the formats of npz files are distinguished."""


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
        format: A key of FORMATS, or "auto" to detect it from the suffix and, for npz files, the
            names of the arrays.
        labels: For rMD17 files: the "revised" or the "original" MD17 labels.
        target: For QM9 files: the property to read.
        energy_unit: Unit of energies, for files read by ASE and npz files in MD17 layout; empty for
            eV and kcal/mol respectively.
        length_unit: Unit of lengths, likewise; empty for Å.
        check_units: Reject energies and forces that are implausible in the units of the format.
        keys: Names of the labels, for files read by ASE, npz files in MD17 layout (energies and
            forces) and HDF5 (all but the virial); empty for the usual names.

    Returns:
        Frames in eV and Å.

    Raises:
        DataError: The file is missing or has an unknown format, units or label names are given for
            a format in which they are fixed, or the reader rejects the file.
    """
    path = expanded(path)
    if not path.is_file():
        found = "is not a file" if path.exists() else "does not exist"
        raise DataError(f"{path} {found}. Pass the path of a data file.")
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
            f"{path}: units are given (energy {energy_unit!r}, length {length_unit!r}), but they "
            f"are fixed in the format {name!r}. Leave both empty."
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
"""Labels that may have other names, by format; for files read by ASE all may."""


def read_data(path: str, options: DataConfig) -> Frames:
    """Read a data file with the options of the configuration."""
    return read_frames(
        path,
        options.format,
        options.labels,
        options.target,
        options.energy_unit,
        options.length_unit,
        options.check_units,
        LabelKeys(options.energy_key, options.forces_key, options.stress_key, options.virial_key),
    )


def _check_keys(path: Path, format: str, keys: LabelKeys) -> None:
    """Raise a DataError if a name is given for a label whose name is fixed in the format."""
    named = _NAMED.get(format, ())
    fixed = [f"{key} {name!r}" for key, name in keys.given().items() if key not in named]
    if fixed:
        choice = f"only {' and '.join(named)} can be given" if named else "leave them empty"
        raise DataError(
            f"{path}: {', '.join(fixed)} is given, but the name is fixed in the format "
            f"{format!r}; {choice}."
        )


def detect_format(path: Path, keys: LabelKeys = USUAL_KEYS) -> str:
    """Return the format of a file, a key of FORMATS.

    Args:
        path: The file.
        keys: Names of the labels, also used to detect the MD17 layout.

    Raises:
        DataError: The format is not supported, or the file is a damaged npz file.
    """
    if path.suffix.lower() == ".npz":
        return _npz_format(path, keys)
    if path.suffix.lower() in (".h5", ".hdf5"):
        return "hdf5"
    try:
        known = is_xyz(path) or filetype(str(path)) in ioformats
    except (UnknownFileTypeError, OSError, EOFError):  # the last two for damaged archives
        known = False
    if not known:
        raise DataError(f"{path} has an unknown format. Supported formats: {_choice()}.")
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
        f"{path} contains the arrays {', '.join(sorted(present)) or 'none'}, which is not a known "
        f"layout. Supported formats: {_choice()}. Rename its arrays, or convert it; in the MD17 "
        "layout other labels can be selected with --data.energy_key and --data.forces_key."
    )


def _choice() -> str:
    """Return a description of the formats."""
    return "; ".join(f"{name}: {text}" for name, text in FORMATS.items())
