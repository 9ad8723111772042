"""lkm-calc evaluate."""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from ..calculator import LKMCalculator
from ..files import expanded, replacing
from ..runtime import shows_progress
from .common import (
    Subcommands,
    add_batch_size_option,
    add_calculator_options,
    add_command,
    make_calculator,
    read_structures,
    tell,
)

MANUAL = """\
Compute energy, forces and, for periodic structures, stress of all structures of a file in batches,
and write them as extended XYZ. If the file contains energies, forces or stress, print the errors.

  lkm-calc evaluate rmd17-ethanol frames.xyz -o predicted.xyz
  lkm-calc evaluate model.safetensors trajectory.traj@::10 -o predicted.xyz

For MD17, QM9, HDF5 and other training data use lkm-train evaluate.
"""

KEPT = ("energy", "forces", "stress")
"""Results that are written and compared with labels."""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands, "evaluate", "energies and forces of many structures", MANUAL, run
    )
    add_calculator_options(parser)
    parser.add_argument(
        "structures", metavar="STRUCTURES", help="file that ASE reads; FILE@::10 for every tenth"
    )
    parser.add_argument("-o", "--output", type=expanded, metavar="FILE", help=".xyz or .extxyz")
    add_batch_size_option(parser, 32)


def run(options: argparse.Namespace) -> int:
    """Evaluate the structures of a file, write the results and print a summary."""
    if options.output and options.output.suffix not in (".xyz", ".extxyz"):
        raise ValueError(f"--output is {options.output}; it must end in .xyz or .extxyz.")
    structures = read_structures(options.structures)
    calculator = make_calculator(options)
    began = time.perf_counter()
    results = calculator.evaluate(
        structures, batch_size=options.batch_size, progress=shows_progress()
    )
    seconds = time.perf_counter() - began
    tell(_error_table(structures, results))
    atoms = sum(map(len, structures))
    tell(f"{len(structures)} structures, {atoms} atoms in {seconds:.2f} s")
    if options.output:
        with replacing(options.output) as temporary:
            predicted = [_labelled(*pair) for pair in zip(structures, results, strict=True)]
            ase.io.write(temporary, predicted, format="extxyz")
        tell(f"Written to {options.output}.")
    return 0


def _labelled(atoms: ase.Atoms, results: dict[str, Any]) -> ase.Atoms:
    """Return a copy with the results instead of the labels."""
    copy: ase.Atoms = atoms.copy()
    for name in LKMCalculator.implemented_properties:  # ASE does not write duplicate names
        copy.info.pop(name, None)
        copy.arrays.pop(name, None)
    kept = {name: results[name] for name in KEPT if name in results}
    copy.calc = SinglePointCalculator(copy, **kept)
    return copy


def _error_table(structures: Sequence[ase.Atoms], results: Sequence[dict[str, Any]]) -> str:
    """Return a table of MAE and RMSE of all properties that have labels."""
    rows = []
    for name, unit in zip(KEPT, ("meV", "meV/Å", "meV/Å³"), strict=True):
        pairs = [
            (1000 * (found[name] - label).ravel(), len(atoms))
            for atoms, found in zip(structures, results, strict=True)
            if name in found and (label := _label(atoms, name, np.shape(found[name]))) is not None
        ]
        if not pairs:
            continue
        rows.append(_row(name, [error for error, _ in pairs], unit, len(pairs)))
        if name == "energy":
            per_atom = [error / size for error, size in pairs]
            rows.append(_row("energy per atom", per_atom, unit, len(pairs)))
    if not rows:
        return "The file contains no energies or forces to compare with."
    return "\n".join([f"{'':16}{'MAE':>10}{'RMSE':>10}  unit    structures", *rows])


def _label(atoms: ase.Atoms, name: str, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Return a label of a structure, or None if it is missing or not finite.

    A stress with nine components is converted to six.
    """
    value = None if atoms.calc is None else atoms.calc.results.get(name)
    if value is None:
        return None
    label = np.asarray(value, dtype=np.float64)
    if name == "stress" and label.size == 9:
        label = full_3x3_to_voigt_6_stress(label.reshape(3, 3))
    if not np.isfinite(label).all():
        return None
    return label.reshape(shape)


def _row(name: str, errors: Sequence[NDArray[np.float64]], unit: str, count: int) -> str:
    values = np.concatenate(errors)
    mae, rmse = np.abs(values).mean(), np.sqrt(np.square(values).mean())
    return f"{name:16}{mae:10.2f}{rmse:10.2f}  {unit:8}{count}"
