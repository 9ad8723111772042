"""Errors of ASE's readers, as errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reading_by_ase(path: str | Path, refusal: type[ValueError] = ValueError) -> Iterator[None]:
    """Turn what ASE raises over a file into an error of the type ``refusal``.

    ASE has about a hundred readers, and a damaged file makes them raise whatever their parsers come
    upon, TypeError and AttributeError included. So everything is caught, the message keeps the type
    of the error, and the body of the ``with`` must be calls of ASE and nothing else.

    Args:
        path: The file that the body reads.
        refusal: Type of the error to raise.
    """
    try:
        yield
    except ImportError as error:
        raise refusal(
            f"{path} is of a kind that ASE cannot read alone ({error}). Install what it asks for, "
            "or convert the file to extended XYZ."
        ) from error
    except MemoryError as error:
        raise refusal(
            f"{path} asks for more memory than there is. It is damaged, or too large; write it "
            "again, or in parts."
        ) from error
    except Exception as error:
        raise refusal(
            f"{path} is not a readable file of structures ({type(error).__name__}: {error}). It is "
            "truncated, or of another kind than its name says; write it again where it came from, "
            "in a format that ASE reads, such as .xyz, .traj, .cif or POSCAR."
        ) from error
