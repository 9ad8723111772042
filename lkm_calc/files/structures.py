"""Reading of structure files, tolerant of names, encodings and blank lines.

For extended XYZ, ASE silently stops at the first blank line between frames, requires UTF-8 and
recognises two suffixes only. All other formats are read by ASE directly.
"""

import codecs
import io
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from ase.data import atomic_numbers
from ase.io.extxyz import XYZError
from ase.io.formats import open_with_compression
from ase.utils import string2index

XYZ_ENDINGS = (".xyz", ".extxyz", ".exyz")
COMPRESSED = (".gz", ".bz2", ".xz")
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Written by Windows: by editors for UTF-8, by redirection in PowerShell for UTF-16."""


def read_structures(path: Path, index: int | str | slice = ":") -> list[Atoms]:
    """Return the structures of a file selected by an index or a slice such as "::10".

    Raises:
        IndexError: The file has fewer structures.
        Exception: Any exception of ASE's readers.
    """
    if not is_xyz(path):
        found = ase.io.read(path, index=index, do_not_split_by_at_sign=True)
        return found if isinstance(found, list) else [found]
    wanted: Any = string2index(index) if isinstance(index, str) else index
    if isinstance(wanted, slice):
        return [_parse(frame) for frame in list(_frames(path))[wanted]]
    frames = list(islice(_frames(path), wanted + 1 if wanted >= 0 else None))
    return [_parse(frames[wanted])]


def iread_structures(path: Path) -> Iterator[Atoms]:
    """Yield the structures of a file one by one; errors are those of ASE's readers."""
    if is_xyz(path):
        yield from map(_parse, _frames(path))
    else:
        yield from ase.io.iread(path, index=":", do_not_split_by_at_sign=True)


def is_xyz(path: Path) -> bool:
    """Return whether a file is XYZ, extended or not, by its suffix or else by its first lines."""
    endings = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    if endings and endings[-1] in XYZ_ENDINGS:
        return True
    try:
        lines = islice((line for line in _lines(path) if line.strip()), 2)
        count, comment = next(lines, ""), next(lines, "")
    except (OSError, EOFError, UnicodeError):  # not XYZ, or damaged: its reader will fail
        return False
    return count.strip().isdecimal() and "Properties=" in comment


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file in any encoding; lines that are not UTF-8 as Latin-1."""
    with open_with_compression(str(path), "rb") as file:
        start = file.read(4)
        file.seek(0)
        for mark, encoding in _BYTE_ORDER_MARKS.items():
            if start.startswith(mark):
                with io.TextIOWrapper(file, encoding=encoding) as text:
                    yield from text
                return
        yield from map(_decoded, file)


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _frames(path: Path) -> Iterator[str]:
    """Yield the text of each frame of an XYZ file, leaving out blank lines between them."""
    lines = iter(_lines(path))
    line: str | None = next(lines, None)
    while line is not None:
        if not line.strip():
            line = next(lines, None)
            continue
        try:
            count = int(line)
        except ValueError:
            raise XYZError(
                f"expected a line with the number of atoms, found {line.strip()[:60]!r}"
            ) from None
        frame = [line, *islice(lines, count + 1)]
        line = next(lines, None)
        while line is not None and line.lstrip().startswith("VEC"):  # cell vectors of plain XYZ
            frame.append(line)
            line = next(lines, None)
        yield "".join(_with_ends(frame))


def _with_ends(lines: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\r\n") + "\n" for line in lines)


def _parse(frame: str) -> Atoms:
    """Return the structure of a frame."""
    try:
        found: Any = ase.io.read(io.StringIO(frame), index=0, format="extxyz")
    except KeyError as error:
        symbol = error.args[0] if error.args else None
        if not isinstance(symbol, str) or symbol in atomic_numbers:
            raise
        raise XYZError(
            f"{symbol!r} is not an element symbol. Write H for deuterium, with its mass in a "
            "column masses:R:1, and plain element symbols for labelled sites"
        ) from error
    atoms: Atoms = found
    return atoms
