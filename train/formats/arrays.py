"""Reading and validation of arrays, shared by the readers."""

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import DataError

DAMAGE = (
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Exceptions of numpy, h5py, tarfile, zipfile and text parsers for damaged files; not TypeError,
AttributeError or NameError, which indicate bugs here."""


@contextmanager
def reading(path: Path, kind: str, origin: str = "") -> Iterator[None]:
    """Convert exceptions for a missing, inaccessible or damaged file into a DataError.

    Args:
        path: The file that the body of the ``with`` reads.
        kind: Kind of the file for messages, for example "npz file".
        origin: A sentence on where to obtain the file.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist. {origin or 'Check the path.'}") from error
    except PermissionError as error:
        raise DataError(f"{path} cannot be read ({error}). Change its permissions.") from error
    except MemoryError as error:
        raise DataError(
            f"There is not enough memory to read {path} ({error}). It is damaged or too large; "
            "download or write it again, or split it."
        ) from error
    except DAMAGE as error:
        raise DataError(
            f"{path} is not a readable {kind} ({error}). It is truncated or has a different "
            "format; download it again, or write it again."
        ) from error


def npz_names(path: Path, origin: str = "") -> set[str]:
    """Return the names of the arrays of an npz file.

    Raises:
        DataError: As for :func:`reading`.
    """
    with reading(path, "npz file", origin), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def load_npz(path: Path, names: Sequence[str], origin: str = "") -> dict[str, NDArray[Any]]:
    """Return arrays of an npz file, which must all exist and be numeric.

    Raises:
        DataError: As for :func:`reading`, or an array is missing or not numeric.
    """
    present = npz_names(path, origin)
    missing = [name for name in names if name not in present]
    if missing:
        raise DataError(
            f"{path} lacks the array(s) {', '.join(missing)}; it contains "
            f"{', '.join(sorted(present)) or 'none'}. Rename its arrays, or convert the file."
        )
    with reading(path, "npz file", origin), np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in names}
    check_numeric(path, arrays)
    return arrays


def check_numeric(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise a DataError if an array has a string, boolean, complex or object dtype."""
    for name, array in arrays.items():
        if array.dtype.kind not in "iuf":
            raise DataError(
                f"{path}: {name} has dtype {array.dtype}, which is not numeric. Convert the file."
            )


def check_shapes(
    path: Path, arrays: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise a DataError that lists all arrays with unexpected shapes."""
    wrong = [
        f"{name} has shape {arrays[name].shape}, not {shape}"
        for name, shape in expected.items()
        if arrays[name].shape != shape
    ]
    if wrong:
        raise DataError(
            f"{path}: the arrays have inconsistent shapes: {'; '.join(wrong)}. Write the file "
            "again from its source."
        )


def whole_numbers(path: Path, name: str, array: NDArray[Any]) -> NDArray[np.int64]:
    """Return an array as integers, or raise a DataError for fractions, NaN or infinity."""
    if not np.isfinite(array).all() or np.any(array != np.floor(array)):
        raise DataError(f"{path}: {name} contains non-integer values. Correct the file.")
    return array.astype(np.int64)


def flat_starts(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    by_frame: Sequence[str],
    vectors: Sequence[str],
) -> NDArray[np.int64]:
    """Check flat arrays of structures and return the (frames + 1) row offsets of the frames.

    Args:
        path: The file, for messages.
        arrays: N (frames) numbers of atoms, Z (atoms) atomic numbers, and the following.
        by_frame: Names of arrays of shape (frames).
        vectors: Names of arrays of shape (atoms, 3).

    Raises:
        DataError: There are no frames, a frame has no atoms, or shapes are inconsistent with
            sum(N).
    """
    sizes = whole_numbers(path, "N", arrays["N"])
    if sizes.ndim != 1 or len(sizes) == 0 or sizes.min() < 1:
        raise DataError(
            f"{path}: N has shape {sizes.shape} and minimum {sizes.min(initial=0)}. It must "
            "contain the number of atoms of each frame, at least 1, for at least one frame."
        )
    atoms = int(sizes.sum())
    expected = {name: (len(sizes),) for name in by_frame} | {"Z": (atoms,)}
    check_shapes(path, arrays, expected | {name: (atoms, 3) for name in vectors})
    return np.concatenate([[0], np.cumsum(sizes)])
