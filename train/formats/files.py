"""Reader of all formats supported by ASE: extended XYZ, trajectories, databases, outputs of codes.

ASE assumes eV and Å, but many files use other units, which can be given as arguments.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
from ase import Atoms
from ase.io.formats import filetype
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from lkm_calc.files import expanded, iread_structures, is_xyz, reading_by_ase

from ..data import ENERGY_UNITS, LENGTH_UNITS, DataError, Frames, check_frames, factor
from .charges import warn_of_mixed_states
from .label_names import (
    ENERGY_NAMES,
    FORCE_NAMES,
    USUAL_KEYS,
    LabelKeys,
    advice,
    candidates,
    numeric_entries,
    option,
)

MAX_DISAGREEMENT = 0.01
"""Tolerance for the difference of stress and virial of a frame, relative to the largest component;
some files contain only three digits."""

logger = logging.getLogger(__name__)


def read_ase(
    path: str | Path,
    energy_unit: str = "eV",
    length_unit: str = "Å",
    check_units: bool = True,
    keys: LabelKeys = USUAL_KEYS,
) -> Frames:
    """Read all structures of a file with ``ase.io``.

    Energies, forces and stress are taken from the results of the stored calculator, or else from
    ``atoms.info``, ``atoms.arrays`` and the columns and data of a database, with the given names or
    those of ENERGY_NAMES and FORCE_NAMES. For frames with a virial but no stress, the stress is
    −virial / volume. Forces are read unmodified, also for atoms with constraints. Stress and virial
    can be 3 × 3, nine numbers, or xx, yy, zz, yz, xz, xy.

    Args:
        path: The file; sizes, compositions and cells may differ between frames.
        energy_unit: Unit of the energies, a key of ENERGY_UNITS.
        length_unit: Unit of positions and cells, a key of LENGTH_UNITS. Forces are in energy_unit /
            length_unit, stress in energy_unit / length_unit³, virials in energy_unit.
        check_units: Reject energies and forces that are implausible in eV and eV/Å.
        keys: Names of the labels; if stress or virial is named, the other is read only if named.

    Returns:
        Frames in eV and Å; forces and stress if the file has them, with NaN for frames without;
        cells if any frame is periodic; config_types if there are any in ``atoms.info``.

    Raises:
        DataError: A unit is unknown; the file is missing, damaged or empty; a named label, the
            energy of a frame, the cell of a periodic direction or the volume for a virial is
            missing; or stress and virial disagree.
    """
    path = expanded(path)
    energy = factor(energy_unit, ENERGY_UNITS, "energy_unit")
    length = factor(length_unit, LENGTH_UNITS, "length_unit")
    images = _read_images(path)
    warn_of_mixed_states(str(path), images)
    labels = [_labels(atoms) for atoms in images]
    _check_keys(path, keys, images, labels)
    energies = _energies(path, images, labels, keys)
    forces, stress = _forces(path, images, labels, keys), _stress(path, images, labels, keys)
    cells, pbc = _periodicity(path, images)
    frames = Frames(
        numbers=np.concatenate([atoms.numbers for atoms in images]).astype(np.int64),
        positions=np.concatenate([atoms.positions for atoms in images]) * length,
        energies=energies * energy,
        starts=np.concatenate([[0], np.cumsum([len(atoms) for atoms in images])]),
        forces=None if forces is None else forces * (energy / length),
        cells=None if cells is None else cells * length,
        pbc=pbc,
        stress=None if stress is None else stress * (energy / length**3),
        config_types=_config_types(labels),
    )
    check_frames(frames, str(path), check_units, partial=True)
    return frames


def _read_images(path: Path) -> list[Atoms]:
    """Return the structures of a file; raise a DataError if there are none or one is empty."""
    if not path.exists():
        raise DataError(f"{path} does not exist. Check the path.")
    with reading_by_ase(path, DataError):
        images = list(_images(path))
    if not images:
        raise DataError(f"{path} contains no structures. Check how the file was written.")
    empty = [f for f, atoms in enumerate(images) if len(atoms) == 0]
    if empty:
        raise DataError(f"{path}: {_listed(empty)} without atoms. Remove them.")
    return images


def _images(path: Path) -> Iterator[Atoms]:
    """Yield the structures of a file, including key-value pairs and data of database rows."""
    if not is_xyz(path) and filetype(str(path)) in ("db", "json"):
        with ase.db.connect(path) as database:
            for row in database.select():
                yield row.toatoms(add_additional_information=True)
    else:
        yield from iread_structures(path)


def _labels(atoms: Atoms) -> dict[str, Any]:
    """Return all labels of a structure; results of a calculator take precedence."""
    results = getattr(atoms.calc, "results", {})
    rows = {**atoms.info.get("data", {}), **atoms.info.get("key_value_pairs", {})}
    labels = {**atoms.arrays, **rows, **atoms.info, **results}
    return {name: value for name, value in labels.items() if value is not None}


def _choose(path: Path, names: Sequence[str], labels: Sequence[Mapping[str, Any]]) -> str:
    """Return the first name that occurs in any frame, or an empty string."""
    present = [name for name in names if any(name in label for label in labels)]
    if len(present) > 1:
        logger.warning(
            "%s contains %s; %s is read. To read another, set data.energy_key, data.forces_key, "
            "data.stress_key or data.virial_key.",
            path,
            " and ".join(present),
            present[0],
        )
    return present[0] if present else ""


def _check_keys(
    path: Path, keys: LabelKeys, images: Sequence[Atoms], labels: Sequence[Mapping[str, Any]]
) -> None:
    """Raise a DataError if no frame has a label with the given name."""
    for kind, name in keys._asdict().items():
        if name and not any(name in label for label in labels):
            raise DataError(
                f"{path}: {kind}_key is {name!r}, but no frame contains it. "
                f"{advice(kind, numeric_entries(images))}"
            )


def _config_types(labels: Sequence[Mapping[str, Any]]) -> NDArray[np.character] | None:
    """Return config_type (frames), empty for frames without; None if no frame has one."""
    if not any("config_type" in label for label in labels):
        return None
    return np.array([str(label.get("config_type", "")) for label in labels])


def _energies(
    path: Path,
    images: Sequence[Atoms],
    labels: Sequence[Mapping[str, Any]],
    keys: LabelKeys,
) -> NDArray[np.float64]:
    """Return the energies (frames) in the unit of the file."""
    names = (keys.energy,) if keys.energy else ENERGY_NAMES
    name = _choose(path, names, labels)
    missing = [f for f, label in enumerate(labels) if not name or name not in label]
    if missing:
        entries = numeric_entries(images[f] for f in missing)
        raise DataError(
            f"{path}: {_listed(missing)} without {name or 'energy'}, in the results of a "
            f"calculator and in atoms.info (names: {name or ', '.join(names)}). Label all frames "
            'with one name, for example atoms.info["energy"] = value, or remove them. '
            f"{advice('energy', entries)}"
        )
    if keys.forces and not keys.energy:
        _warn_of_two(path, name, keys.forces)
    # Some calculators store an array with one number.
    values = [np.squeeze(label[name]) for label in labels]
    return np.array([_numeric(path, f, name, value, ()) for f, value in enumerate(values)])


def _forces(
    path: Path,
    images: Sequence[Atoms],
    labels: Sequence[Mapping[str, Any]],
    keys: LabelKeys,
) -> NDArray[np.float64] | None:
    """Return the forces (atoms, 3) in the unit of the file, NaN for frames without, or None."""
    name = _choose(path, (keys.forces,) if keys.forces else FORCE_NAMES, labels)
    if not name:
        _suggest(path, "forces", images)
        return None
    if keys.energy and not keys.forces:
        _warn_of_two(path, keys.energy, name)
    return np.concatenate(
        [
            _numeric(path, f, name, label[name], (len(atoms), 3))
            if name in label
            else np.full((len(atoms), 3), np.nan)
            for f, (atoms, label) in enumerate(zip(images, labels, strict=True))
        ]
    )


def _warn_of_two(path: Path, energies: str, forces: str) -> None:
    """Warn if only one of energies and forces is named; the other may be from another method."""
    logger.warning(
        "%s: energies are read from %s and forces from %s. If they are from different methods, set "
        "both data.energy_key and data.forces_key.",
        path,
        energies,
        forces,
    )


def _suggest(path: Path, kind: str, images: Sequence[Atoms]) -> None:
    """Warn if a label is not found but the file contains a similar name."""
    likely = candidates(kind, numeric_entries(images))
    if likely:
        names = ", ".join(map(str, likely))
        logger.warning(
            "%s: no %s under the usual names. The file contains %s; to read it, %s.",
            path,
            kind,
            names,
            option(kind, likely[0].name),
        )


def _stress(
    path: Path,
    images: Sequence[Atoms],
    labels: Sequence[Mapping[str, Any]],
    keys: LabelKeys,
) -> NDArray[np.float64] | None:
    """Return the stress (frames, 3, 3) in the unit of the file, NaN for frames without."""
    stress = _tensors(path, keys.stress_names, labels)
    virial = _tensors(path, keys.virial_names, labels)
    if virial is None:
        if stress is None and any(atoms.pbc.any() for atoms in images):
            _suggest(path, "stress", images)
            _suggest(path, "virial", images)
        return stress
    by_virial = _stress_of_virial(path, images, virial)
    if stress is None:
        return by_virial
    difference = np.abs(stress - by_virial).max((1, 2))
    bad = np.flatnonzero(difference > MAX_DISAGREEMENT * np.abs(by_virial).max((1, 2)) + 1e-7)
    if len(bad):
        f = int(bad[0])
        raise DataError(
            f"{path}: {_listed(bad.tolist())} whose stress is not −virial / volume; xx of frame "
            f"{f} is {stress[f, 0, 0]:.4g}, but {by_virial[f, 0, 0]:.4g} from the virial. Remove "
            "the one with the wrong sign or unit from the file."
        )
    return np.where(np.isnan(stress), by_virial, stress)


def _stress_of_virial(
    path: Path, images: Sequence[Atoms], virial: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return −virial / volume (frames, 3, 3), NaN for molecules."""
    periodic = np.array([atoms.pbc.any() for atoms in images])
    volumes = np.array([abs(np.linalg.det(atoms.cell.array)) for atoms in images])
    flat = np.flatnonzero(periodic & (volumes == 0) & ~np.isnan(virial).any((1, 2)))
    if len(flat):
        raise DataError(
            f"{path}: {_listed(flat.tolist())} with a virial but without a cell volume to convert "
            "it to a stress. Set three cell vectors, or remove the virial."
        )
    stress: NDArray[np.float64] = np.full_like(virial, np.nan)
    stress[periodic] = -virial[periodic] / np.maximum(volumes[periodic], 1e-300)[:, None, None]
    return stress


def _tensors(
    path: Path, names: Sequence[str], labels: Sequence[Mapping[str, Any]]
) -> NDArray[np.float64] | None:
    """Return the tensor (frames, 3, 3) with one of the names, NaN for frames without; or None."""
    name = _choose(path, names, labels)
    if not name:
        return None
    return np.stack(
        [
            _tensor(path, f, name, label[name]) if name in label else np.full((3, 3), np.nan)
            for f, label in enumerate(labels)
        ]
    )


def _tensor(path: Path, frame: int, name: str, value: Any) -> NDArray[np.float64]:
    """Return a tensor (3, 3) from a matrix, nine numbers or six Voigt components."""
    if np.shape(value) == (9,):  # ASE reshapes only entries named stress or virial
        return _numeric(path, frame, name, value, (9,)).reshape(3, 3)
    if np.shape(value) != (6,):
        return _numeric(path, frame, name, value, (3, 3))
    matrix: NDArray[np.float64] = voigt_6_to_full_3x3_stress(
        _numeric(path, frame, name, value, (6,))
    )
    return matrix


def _numeric(
    path: Path, frame: int, name: str, value: Any, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return a label as an array of the given shape, or raise a DataError."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or array.shape != shape:
        raise DataError(
            f"{path}: {name} of frame {frame} has dtype {array.dtype} and shape {array.shape}; it "
            f"must be numeric with shape {shape}. Correct or remove the frame."
        )
    return array.astype(np.float64)


def _periodicity(
    path: Path, images: Sequence[Atoms]
) -> tuple[NDArray[np.float64] | None, NDArray[np.bool_] | None]:
    """Return cells (frames, 3, 3) in the unit of the file and pbc (frames, 3), or None for both."""
    pbc = np.stack([atoms.pbc for atoms in images])
    if not pbc.any():
        return None, None
    cells = np.stack([atoms.cell.array for atoms in images])
    ranks = [np.linalg.matrix_rank(c[p]) if p.any() else 0 for c, p in zip(cells, pbc, strict=True)]
    flat = np.flatnonzero(ranks < pbc.sum(1)).tolist()
    if flat:
        raise DataError(
            f"{path}: {_listed(flat)} with periodic directions whose cell vectors are zero or "
            "parallel. Set the cell, or pbc = False for molecules."
        )
    return cells, pbc


def _listed(frames: Sequence[int]) -> str:
    """Return the number of frames and the indices of the first ones, for messages."""
    return f"{len(frames)} frame(s) (first: {list(frames[:5])})"
