"""Labels of structures from an ASE calculator or a command."""

import logging
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorError
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray
from tqdm import tqdm

from lkm_calc.files import replacing
from lkm_calc.graph import edges_within
from lkm_calc.runtime import hide_progress

from ..config import ConfigError
from ..data import MIN_DISTANCE, DataError, Frames
from ..formats import read_frames
from ..sampling import make_calculator

logger = logging.getLogger("lkm_train")

PLACEHOLDERS = ("{structures}", "{labels}")
"""What a command contains: the file to read and the file to write, both extxyz."""
MAX_FORCE = 30.0
"""Largest force in eV/Å of a frame that is kept: in others the molecule is broken."""
SAME = 1e-3
"""Tolerance in Å for the positions that a command returns."""


class Labelled(NamedTuple):
    """Labelled structures."""

    frames: Frames
    indices: NDArray[np.int64]
    """Indices of the structures among those that were to be labelled."""


def is_command(labels: str) -> bool:
    """Return whether labels come from a command instead of a calculator."""
    return any(text in labels for text in PLACEHOLDERS)


def check_labels_source(labels: str) -> None:
    """Raise a ConfigError if labels name neither a calculator nor a complete command."""
    if not is_command(labels):
        make_calculator(labels)
        return
    missing = [text for text in PLACEHOLDERS if text not in labels]
    if missing:
        raise ConfigError(
            f"The command {labels!r} lacks {' and '.join(missing)}. Write for example "
            '"bash label.sh {structures} {labels}".'
        )


def label_structures(
    structures: Sequence[Atoms],
    labels: str,
    folder: Path,
    jobs: int = 1,
    stop: Sequence[int] = (),
) -> Labelled | None:
    """Compute energies and forces, keeping every result, so that a later call continues.

    Structures for which the calculation fails, those with atoms closer than ``MIN_DISTANCE``, and
    those with a force above ``MAX_FORCE``, are left out with a warning.

    Args:
        structures: Structures to label.
        labels: Calculator, see :func:`train.sampling.make_calculator`, or a command that contains
            ``{structures}`` and ``{labels}``, the paths of the extxyz file with the structures and
            of the file to write, in any format that ``lkm-train`` reads.
        folder: Folder of the results.
        jobs: Number of processes; not for a command.
        stop: Filled by a signal handler: the call returns after the current structure.

    Returns:
        The labelled frames and the indices of their structures, or None if it was stopped.

    Raises:
        ConfigError: The calculator is not available, or the command failed.
        DataError: The command returned other structures, or no frame is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.flatnonzero([closest_distance(atoms) >= MIN_DISTANCE for atoms in structures])
    if len(rows) < len(structures):
        logger.warning(
            "%d of %d structures have atoms closer than %g Å and are left out.",
            *(len(structures) - len(rows), len(structures), MIN_DISTANCE),
        )
    if not len(rows):
        raise DataError(
            f"Atoms are too close to each other in all structures for {folder}. Train for longer "
            "(optimiser.epochs), with more first structures, or lower the temperature."
        )
    structures = [structures[k] for k in rows.tolist()]
    if is_command(labels):
        found = _of_command(structures, labels, folder, stop)
        if found is None:
            return None
        frames = found
    else:
        paths = [folder / f"{k + 1:04d}.extxyz" for k in rows.tolist()]
        failed = [path.with_suffix(".failed") for path in paths]
        todo = [k for k, path in enumerate(paths) if not (path.exists() or failed[k].exists())]
        with tqdm(
            total=len(structures),
            initial=len(structures) - len(todo),
            desc="labels",
            unit="frame",
            disable=hide_progress(),
        ) as bar:
            for k, result in zip(
                todo, _results([structures[k] for k in todo], labels, jobs), strict=False
            ):
                _write(result, structures[k], paths[k])
                bar.update()
                if stop:
                    return None
        done = [path for path in paths if path.exists()]
        if len(done) < len(paths):
            logger.warning(
                "%s failed for %d of %d structures, which are left out.",
                *(labels, len(paths) - len(done), len(paths)),
            )
        if not done:
            raise DataError(
                f"{labels} failed for all structures in {folder}. Check that it can compute them."
            )
        for path, mark in zip(paths, failed, strict=True):
            if not path.exists():  # so that a later call does not try again, with another result
                mark.touch()
        frames = Frames.joined([read_frames(path, check_units=False) for path in done])
        rows = rows[[path.exists() for path in paths]]
    kept = _plausible(frames, folder)
    return Labelled(frames.select(kept), rows[kept])


def closest_distance(atoms: Atoms) -> float:
    """Return the closest distance of two atoms of a structure, or of their images, in Å."""
    distances = edges_within(
        atoms.positions, MIN_DISTANCE, np.asarray(atoms.cell.complete()), atoms.pbc
    )[1]
    return float(distances.min(initial=np.inf))


def _results(structures: Sequence[Atoms], labels: str, jobs: int) -> Iterator[Any]:
    """Yield energy and forces, or None for a failure, of each structure in order."""
    with ExitStack() as stack:
        if jobs > 1:
            pool = stack.enter_context(ProcessPoolExecutor(jobs, mp_context=get_context("spawn")))
            yield from pool.map(_compute, structures, repeat(labels))
        else:
            calculator = make_calculator(labels)
            yield from map(partial(_computed, calculator=calculator), structures)


def _compute(structure: Atoms, labels: str) -> Any:
    """Compute a structure in another process."""
    return _computed(structure, make_calculator(labels))


def _computed(structure: Atoms, calculator: Any) -> tuple[float, Any] | None:
    atoms = structure.copy()
    atoms.calc = calculator
    try:
        return float(atoms.get_potential_energy()), atoms.get_forces().copy()
    except CalculatorError as error:
        logger.debug("%s", error)
        return None


def _write(result: tuple[float, Any] | None, structure: Atoms, path: Path) -> None:
    if result is None:
        return
    atoms = _bare(structure)
    atoms.calc = SinglePointCalculator(atoms, energy=result[0], forces=result[1])
    with replacing(path) as temporary:
        ase.io.write(temporary, atoms, format="extxyz")


def _bare(atoms: Atoms) -> Atoms:
    """Return a structure without velocities, labels and other data."""
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _of_command(
    structures: Sequence[Atoms], labels: str, folder: Path, stop: Sequence[int]
) -> Frames | None:
    """Run a command once for all structures; its result is kept. Return None if stopped."""
    source, found = folder / "structures.extxyz", folder / "labels.extxyz"
    if not found.exists():
        with replacing(source) as temporary:
            ase.io.write(temporary, [_bare(atoms) for atoms in structures], format="extxyz")
        words = shlex.split(labels)
        paths = {"{structures}": str(source), "{labels}": str(found)}
        for name, path in paths.items():
            words = [word.replace(name, path) for word in words]
        status = subprocess.run(words, check=False).returncode
        if stop and not found.exists():  # Ctrl-C also reaches the command
            return None
        if status or not found.exists():
            raise ConfigError(
                f"The command {shlex.join(words)} "
                + (f"ended with exit status {status}." if status else f"did not write {found}.")
                + f" Correct it; the structures are in {source}."
            )
    frames = read_frames(found, check_units=True)
    expected = np.concatenate([atoms.positions for atoms in structures])
    if frames.positions.shape != expected.shape or np.abs(frames.positions - expected).max() > SAME:
        raise DataError(
            f"{found} does not contain the structures of {source} in the same order. Correct the "
            f"command and delete {found}."
        )
    return frames


def _plausible(frames: Frames, folder: Path) -> NDArray[np.int64]:
    """Return the indices of frames that are not those of broken molecules."""
    if frames.forces is None:
        raise DataError(
            f"The labels in {folder} do not contain forces, which active learning needs. Write "
            "them too."
        )
    largest = np.maximum.reduceat(np.abs(frames.forces).max(1), frames.starts[:-1])
    kept = np.flatnonzero(largest < MAX_FORCE)
    if len(kept) < len(frames):
        logger.warning(
            "%d of %d labelled structures have forces above %g eV/Å and are left out.",
            *(len(frames) - len(kept), len(frames), MAX_FORCE),
        )
    if len(kept) == 0:
        raise DataError(
            f"No labelled structure in {folder} has forces below {MAX_FORCE:g} eV/Å. Check the "
            "unit of the labels. If it is correct, the simulation breaks the molecule: train for "
            "longer (optimiser.epochs), with more first structures, or lower the temperature."
        )
    return kept
