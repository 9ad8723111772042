"""Arrays out of files, with errors that say what to do; shared by the readers."""

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
"""What numpy, h5py, tarfile, zipfile and parsers of text raise over damaged files; not TypeError,
AttributeError or NameError, which faults of this program raise."""


@contextmanager
def reading(path: Path, kind: str, origin: str = "") -> Iterator[None]:
    """Turn what a missing, locked or damaged file raises into a DataError.

    Args:
        path: The file that the body of the ``with`` reads.
        kind: What it should be, "npz file" for example.
        origin: A sentence that says where to get the file.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist. {origin or 'Check the path.'}") from error
    except PermissionError as error:
        raise DataError(f"{path} may not be read ({error}). Change its permissions.") from error
    except MemoryError as error:
        raise DataError(
            f"{path} asks for more memory than there is ({error}). It is damaged, or too large."
        ) from error
    except DAMAGE as error:
        raise DataError(
            f"{path} is not a readable {kind} ({error}). It is truncated, or of another kind; "
            "download it again, or write it again where it came from."
        ) from error


def npz_names(path: Path, origin: str = "") -> set[str]:
    """Return the names of the arrays of an npz file.

    Raises:
        DataError: As for :func:`reading`.
    """
    with reading(path, "npz file", origin), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def load_npz(path: Path, names: Sequence[str], origin: str = "") -> dict[str, NDArray[Any]]:
    """Return some arrays of an npz file, which must all be there and hold numbers.

    Raises:
        DataError: As for :func:`reading`, or an array is missing or holds no numbers.
    """
    present = npz_names(path, origin)
    missing = [name for name in names if name not in present]
    if missing:
        raise DataError(
            f"{path} lacks the array(s) {', '.join(missing)}; it holds "
            f"{', '.join(sorted(present)) or 'none'}. Rename its arrays, or convert it."
        )
    with reading(path, "npz file", origin), np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in names}
    check_numeric(path, arrays)
    return arrays


def check_numeric(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise a DataError if an array holds text, truth values, complex numbers or objects."""
    for name, array in arrays.items():
        if array.dtype.kind not in "iuf":
            raise DataError(f"{path}: {name} holds {array.dtype}, not numbers. Convert the file.")


def check_shapes(
    path: Path, arrays: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise a DataError that names every array whose shape is not the expected one."""
    wrong = [
        f"{name} is {arrays[name].shape}, not {shape}"
        for name, shape in expected.items()
        if arrays[name].shape != shape
    ]
    if wrong:
        raise DataError(
            f"{path}: the arrays do not fit together: {'; '.join(wrong)}. Write the file again "
            "from its source."
        )


def whole_numbers(path: Path, name: str, array: NDArray[Any]) -> NDArray[np.int64]:
    """Return an array as integers, or raise a DataError if it holds fractions, NaN or infinity."""
    if not np.isfinite(array).all() or np.any(array != np.floor(array)):
        raise DataError(f"{path}: {name} holds values that are not whole. Correct the file.")
    return array.astype(np.int64)


def flat_starts(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    by_frame: Sequence[str],
    vectors: Sequence[str],
) -> NDArray[np.int64]:
    """Return the (frames + 1) first rows of structures stored flat, and check their arrays.

    Args:
        path: The file, for messages.
        arrays: N (frames) numbers of atoms, Z (atoms) atomic numbers, and the following.
        by_frame: Names of arrays of shape (frames).
        vectors: Names of arrays of shape (atoms, 3).

    Raises:
        DataError: There are no frames, one has no atoms, or shapes and sum(N) do not agree.
    """
    sizes = whole_numbers(path, "N", arrays["N"])
    if sizes.ndim != 1 or len(sizes) == 0 or sizes.min() < 1:
        raise DataError(
            f"{path}: N has the shape {sizes.shape} and the smallest value "
            f"{sizes.min(initial=0)}. It must hold the number of atoms of each frame, at least 1, "
            "for at least one frame."
        )
    atoms = int(sizes.sum())
    expected = {name: (len(sizes),) for name in by_frame} | {"Z": (atoms,)}
    check_shapes(path, arrays, expected | {name: (atoms, 3) for name in vectors})
    return np.concatenate([[0], np.cumsum(sizes)])
