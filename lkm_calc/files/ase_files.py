"""Conversion of errors of ASE's readers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reading_by_ase(path: str | Path, refusal: type[ValueError] = ValueError) -> Iterator[None]:
    """Convert any exception of ASE while reading a file into an error of type ``refusal``.

    ASE has about a hundred readers, and damaged files make their parsers raise all kinds of
    exceptions, including TypeError and AttributeError. Everything is therefore caught, the message
    contains the type of the exception, and the body of the ``with`` must only call ASE.

    Args:
        path: The file that the body reads.
        refusal: Type of the error to raise.
    """
    try:
        yield
    except ImportError as error:
        raise refusal(
            f"ASE needs another package to read {path} ({error}). Install it, or convert the file "
            "to extended XYZ."
        ) from error
    except MemoryError as error:
        raise refusal(
            f"There is not enough memory to read {path}. It is damaged or too large; write it "
            "again, or split it."
        ) from error
    except Exception as error:
        raise refusal(
            f"{path} is not a readable structure file ({type(error).__name__}: {error}). It is "
            "truncated, or its suffix does not match its format; write it again in a format that "
            "ASE reads, such as .xyz, .traj, .cif or POSCAR."
        ) from error
