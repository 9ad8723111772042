"""lkm-calc's HDF5 container of frames, with units.

Datasets are named like the fields of Frames and have the attribute ``units``; the file has the
attributes ``format``, ``version`` and ``description``. Missing labels are omitted; forces and
stress of single frames without labels are NaN. ``config_types`` (strings) is optional.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from lkm_calc.files import expanded, replacing

from ..data import (
    ENERGY_UNITS,
    FORCE_UNITS,
    LENGTH_UNITS,
    STRESS_UNITS,
    DataError,
    Frames,
    check_frames,
    factor,
)
from .arrays import check_numeric, check_shapes, reading, whole_numbers
from .label_names import USUAL_KEYS, LabelKeys
from .qm9 import TARGETS

FORMAT = "lkm-frames"
VERSION = 1

_UNITLESS: Mapping[str, float] = {"1": 1.0}
# Properties other than energies keep their units.
_PROPERTY_UNITS = dict.fromkeys((t.unit for t in TARGETS.values() if t.unit != "eV"), 1.0)
_UNITS: Mapping[str, Mapping[str, float]] = {
    "numbers": _UNITLESS,
    "positions": LENGTH_UNITS,
    "energies": {**ENERGY_UNITS, **_PROPERTY_UNITS},
    "starts": _UNITLESS,
    "forces": FORCE_UNITS,
    "cells": LENGTH_UNITS,
    "pbc": _UNITLESS,
    "stress": STRESS_UNITS,
}
"""Supported units of each dataset with their factors; the first one is used for writing."""
_REQUIRED = ("numbers", "positions", "energies", "starts")
_TYPES = "config_types"


def write_hdf5(frames: Frames, path: str | Path, description: str = "") -> None:
    """Write frames to an HDF5 file, atomically.

    Args:
        frames: At least one frame.
        path: Path of the file; an existing file is replaced.
        description: Origin of the data, stored in the file.

    Raises:
        DataError: There are no frames, or their unit is not supported.
    """
    if len(frames) == 0:
        raise DataError(f"There are no frames to write to {path}.")
    if frames.energy_unit not in {"eV", *_PROPERTY_UNITS}:
        raise DataError(
            f"energy_unit is {frames.energy_unit!r}; it must be eV, or for properties of QM9 one "
            f"of {', '.join(_PROPERTY_UNITS)}. Convert the energies first."
        )
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(format=FORMAT, version=VERSION, description=description)
        for name, units in _UNITS.items():
            values = getattr(frames, name)
            if values is not None:
                # gzip stores a checksum of each chunk, so damage is detected on reading.
                dataset = file.create_dataset(name, data=values, compression="gzip", shuffle=True)
                dataset.attrs["units"] = (
                    frames.energy_unit if name == "energies" else next(iter(units))
                )
        if frames.config_types is not None:
            texts = frames.config_types.astype(object)
            file.create_dataset(_TYPES, data=texts, dtype=h5py.string_dtype(), compression="gzip")


def read_description(path: str | Path) -> str:
    """Return the description of a file of :func:`write_hdf5`."""
    with h5py.File(path) as file:
        return str(file.attrs["description"])


def read_hdf5(path: str | Path, check_units: bool = True, keys: LabelKeys = USUAL_KEYS) -> Frames:
    """Read frames from a file written by :func:`write_hdf5` or in the same layout.

    Args:
        path: The file.
        check_units: Reject energies and forces that are implausible in eV and eV/Å.
        keys: Names of the datasets of energies, forces and stress; empty for the usual names.

    Returns:
        Frames in eV and Å, converted from the units in the file.

    Raises:
        DataError: The file is missing, damaged, or has a different format or version; a dataset or
            its units are missing or unknown, or the datasets are inconsistent.
    """
    path = expanded(path)
    # Another program may have the file open, and some shared file systems do not support locks.
    with reading(path, "HDF5 file"), h5py.File(path, "r", locking=False) as file:
        _check_header(path, file)
        present = _find_datasets(path, file, keys)
        arrays: dict[str, NDArray[Any]] = {n: file[found][()] for n, found in present.items()}
        units = {n: _text(file[found].attrs.get("units", "")) for n, found in present.items()}
        types = _config_types(path, file, arrays["energies"].size)
    _check_arrays(path, arrays)
    frames = _convert(path, arrays, units, types)
    check_frames(frames, str(path), check_units, partial=True)
    return frames


def _find_datasets(path: Path, file: h5py.File, keys: LabelKeys) -> dict[str, str]:
    """Return the names of the existing datasets, by field of Frames.

    Raises:
        DataError: A required dataset, or one given by a key, is missing.
    """
    given = {"energies": keys.energy, "forces": keys.forces, "stress": keys.stress}
    names = {name: given.get(name) or name for name in _UNITS}
    present = {n: f for n, f in names.items() if isinstance(file.get(f), h5py.Dataset)}
    missing = [f for n, f in names.items() if n not in present and (n in _REQUIRED or n != f)]
    if missing:
        raise DataError(
            f"{path} lacks the dataset(s) {', '.join(missing)}; it contains "
            f"{', '.join(map(str, file)) or 'none'}. Write it again with write_hdf5, or set "
            "--data.energy_key, --data.forces_key and --data.stress_key."
        )
    return present


def _config_types(path: Path, file: h5py.File, n_frames: int) -> NDArray[np.character] | None:
    """Return the config_type of each frame, or None if the file has none."""
    dataset = file.get(_TYPES)
    if not isinstance(dataset, h5py.Dataset):
        return None
    if h5py.check_string_dtype(dataset.dtype) is None or dataset.shape != (n_frames,):
        raise DataError(
            f"{path}: {_TYPES} has dtype {dataset.dtype} and shape {dataset.shape}; it must "
            f"contain a string for each of {n_frames} frames. Correct or remove it."
        )
    return np.array(dataset.asstr()[()].tolist(), dtype=np.str_)


def _text(value: Any) -> str:
    """Return an attribute as a string; some programs write fixed-length bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _check_header(path: Path, file: h5py.File) -> None:
    """Raise a DataError if the format or version of the file is not supported."""
    found, version = _text(file.attrs.get("format", "")), file.attrs.get("version")
    if found != FORMAT:
        raise DataError(
            f"{path} is an HDF5 file with format {found!r}, not {FORMAT!r}. Convert it: read its "
            "arrays, build Frames and write them with write_hdf5."
        )
    if version != VERSION:
        raise DataError(
            f"{path} has version {version} of {FORMAT}; this lkm-calc reads version {VERSION}. "
            "Update lkm-calc, or write the file again with this version."
        )


def _check_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise a DataError if the datasets are not numeric or have inconsistent shapes."""
    check_numeric(path, {name: a for name, a in arrays.items() if name != "pbc"})
    if ("cells" in arrays) != ("pbc" in arrays):
        raise DataError(f"{path} contains only one of cells and pbc; add the other or remove both.")
    atoms, frames = arrays["numbers"].size, arrays["energies"].size
    by_name = {
        "numbers": (atoms,),
        "positions": (atoms, 3),
        "energies": (frames,),
        "starts": (frames + 1,),
        "forces": (atoms, 3),
        "cells": (frames, 3, 3),
        "pbc": (frames, 3),
        "stress": (frames, 3, 3),
    }
    check_shapes(path, arrays, {name: by_name[name] for name in arrays})
    starts = arrays["starts"]
    if frames == 0 or starts[0] != 0 or starts[-1] != atoms or np.any(np.diff(starts) < 1):
        raise DataError(
            f"{path}: starts must increase from 0 to the number of atoms, {atoms}, with at least "
            f"one frame; it is {starts[:3].tolist()} … {starts[-1]}. Write the file again."
        )


def _convert(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    units: Mapping[str, str],
    config_types: NDArray[np.character] | None,
) -> Frames:
    """Return frames in eV and Å, with the dtypes of Frames."""
    floats = {
        name: array.astype(np.float64)
        * factor(units[name], _UNITS[name], f"{path}: units of {name}")
        for name, array in arrays.items()
        if _UNITS[name] is not _UNITLESS
    }
    return Frames(
        numbers=whole_numbers(path, "numbers", arrays["numbers"]),
        starts=whole_numbers(path, "starts", arrays["starts"]),
        pbc=arrays["pbc"].astype(np.bool_) if "pbc" in arrays else None,
        energy_unit=units["energies"] if units["energies"] in _PROPERTY_UNITS else "eV",
        config_types=config_types,
        **floats,
    )
