"""Fetch the public data sets from where their authors have put them."""

import hashlib
import http.client
import logging
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lkm_calc.files import expanded, replacing

from .data import DataError
from .formats import pack_qm9, reading

logger = logging.getLogger(__name__)

TIMEOUT = 60.0
"""Seconds without an answer after which a download is given up."""


@dataclass(frozen=True)
class Source:
    """A public file."""

    address: str
    file: str
    """Name of the file here."""
    magic: bytes = b""
    """How its content begins; a page that says "not found" does not begin so."""
    sha256: str = ""
    """Its checksum; empty where none is published. Nothing is claimed to be checked then."""


_GDML = "http://www.quantum-machine.org/gdml/data/npz"
_FIGSHARE = "https://figshare.com/ndownloader/files"
_MOLECULES = (
    "aspirin",
    "ethanol",
    "malonaldehyde",
    "naphthalene",
    "salicylic",
    "toluene",
    "uracil",
)

SOURCES: Mapping[str, tuple[Source, ...]] = {
    **{f"md17-{m}": (Source(f"{_GDML}/md17_{m}.npz", f"md17_{m}.npz", b"PK"),) for m in _MOLECULES},
    "md17-benzene": (Source(f"{_GDML}/md17_benzene2017.npz", "md17_benzene.npz", b"PK"),),
    "rmd17": (Source(f"{_FIGSHARE}/23950376", "rmd17.tar.bz2", b"BZh"),),
    "qm9": (
        Source(f"{_FIGSHARE}/3195389", "dsgdb9nsd.xyz.tar.bz2", b"BZh"),
        Source(f"{_FIGSHARE}/3195404", "uncharacterized.txt"),
    ),
}
"""Files of each data set: Chmiela et al. 2017, Christensen and von Lilienfeld 2020 and
Ramakrishnan et al. 2014."""


def download(name: str, folder: str | Path) -> Path:
    """Fetch a data set, unless its files are in the folder already.

    Args:
        name: A key of SOURCES: "md17-aspirin" and so on, "rmd17" or "qm9".
        folder: Where to put it; files fetched by hand belong there too.

    Returns:
        The npz file; for "rmd17" the unpacked folder, which holds ``npz_data/rmd17_aspirin.npz``
        and so on.

    Raises:
        DataError: The name is unknown, the network fails, or what came is not the file.
    """
    if name not in SOURCES:
        raise DataError(f"There is no data set {name!r}; choose one of {', '.join(SOURCES)}.")
    folder = expanded(folder)
    result = {"rmd17": folder / "rmd17", "qm9": folder / "qm9.npz"}.get(name)
    if result is not None and result.exists():
        return result
    paths = [fetch(source, folder) for source in SOURCES[name]]
    if result is None:
        return paths[0]
    if name == "qm9":
        pack_qm9(paths[0], paths[1], result)
    else:
        _unpack(paths[0], result)
    return result


def fetch(source: Source, folder: Path) -> Path:
    """Return the path of a public file in a folder, fetched whole or not at all.

    Raises:
        DataError: The network fails, or the file is not the one that was meant.
    """
    path = folder / source.file
    if not path.exists():
        try:
            with replacing(path) as temporary:
                _retrieve(source.address, temporary)
                _check(source, temporary)
        except (OSError, http.client.HTTPException) as error:
            raise DataError(
                f"{source.address} could not be fetched ({error}). Fetch it by hand, in a browser "
                f"for example, save it as {path} and start again."
            ) from error
    else:
        _check(source, path)
    return path


def _retrieve(address: str, path: Path) -> None:
    """Copy what an address holds to a file, or raise an OSError."""
    with urllib.request.urlopen(address, timeout=TIMEOUT) as answer, path.open("wb") as file:
        # A server that wants to see a browser answers 202 and nothing more.
        if answer.status not in (None, 200):
            raise OSError(f"the server answered with status {answer.status}")
        shutil.copyfileobj(answer, file)
        expected, found = answer.headers.get("Content-Length"), file.tell()
        if expected is not None and int(expected) != found:
            raise OSError(f"{found} of {expected} bytes arrived")


def _check(source: Source, path: Path) -> None:
    """Raise a DataError if a file is not the one that was meant."""
    with path.open("rb") as file:
        begins_so = file.read(len(source.magic)) == source.magic
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not begins_so or (source.sha256 and found != source.sha256):
        wanted = f", not {source.sha256}" if source.sha256 else ""
        raise DataError(
            f"What {source.address} gave is not {source.file}: its SHA-256 is {found}{wanted}. "
            f"Fetch it by hand, and put it into {path.parent} as {source.file}."
        )
    checked = "as published" if source.sha256 else "not checked, as none is published"
    logger.info("%s: SHA-256 %s, %s.", source.file, found, checked)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the top folder of an archive to a folder that appears whole or not at all.

    Raises:
        DataError: The archive is damaged, or holds anything but files and folders inside it.
    """
    prefix = f".{folder.name}-"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix) as temporary:
        top = Path(temporary).resolve()
        for name, content in _contents(archive):
            path = (top / name).resolve()
            if not path.is_relative_to(top):
                raise DataError(
                    f"{archive} holds {name!r}, a file outside its folder. Nothing of it was kept; "
                    "remove it and download it again."
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        unpacked = top / folder.name
        if not unpacked.is_dir():
            raise DataError(f"{archive} holds no folder {folder.name}. Remove it and start again.")
        unpacked.replace(folder)


def _contents(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the files in an archive.

    TarFile.extractall is safe only with its argument ``filter``, which Python 3.11.2 lacks.
    """
    with reading(archive, "archive"), tarfile.open(archive) as files:
        for member in files:
            if member.isdir():
                continue
            file = files.extractfile(member) if member.isfile() else None
            if file is None:
                raise DataError(
                    f"{archive} holds {member.name!r}, a link or a device, which no data set needs."
                    " Remove it and download it again."
                )
            yield member.name, file.read()
