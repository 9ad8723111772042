"""lkm-calc relax, also used by other subcommands."""

import argparse
import logging
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.filters import FrechetCellFilter
from ase.io.formats import UnknownFileTypeError, filetype
from ase.io.trajectory import Trajectory
from ase.optimize import BFGS, FIRE, FIRE2, LBFGS, BFGSLineSearch
from ase.optimize.optimize import Optimizer
from tqdm import tqdm

from ..committee import has_stress
from ..files import expanded, replacing
from ..runtime import hide_progress
from .common import (
    Subcommands,
    add_calculator_options,
    add_command,
    add_structure,
    make_calculator,
    read_structure,
)

logger = logging.getLogger("lkm_calc")

MANUAL = """\
Relax a structure until all forces are below --fmax; with --cell also the cell of a periodic
structure, until stress times volume per atom is below the same number in eV.

  lkm-calc relax rmd17-ethanol ethanol.xyz -o relaxed.xyz
  lkm-calc relax model.safetensors POSCAR --cell -o CONTCAR

Exit status: 0 converged, 1 not converged within --steps; the last structure is written.
"""

OPTIMISERS: dict[str, type[Optimizer]] = {
    "bfgs": BFGS,
    "bfgs-line-search": BFGSLineSearch,
    "lbfgs": LBFGS,
    "fire": FIRE,
    "fire2": FIRE2,
}


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "relax", "relax a structure", MANUAL, run)
    add_calculator_options(parser)
    add_structure(parser)
    parser.add_argument(
        "-o", "--output", type=expanded, help="structure file; default: NAME-relaxed.xyz"
    )
    parser.add_argument("--optimiser", choices=tuple(OPTIMISERS), default="bfgs")
    parser.add_argument("--fmax", type=float, default=0.01, help="eV/Å; default %(default)s")
    parser.add_argument(
        "--steps", type=int, default=1000, help="maximum number of steps; default %(default)s"
    )
    parser.add_argument("--cell", action="store_true", help="relax the cell as well")
    parser.add_argument("--trajectory", type=expanded, help=".traj file of all steps")


def run(options: argparse.Namespace) -> int:
    """Relax a structure and write it."""
    atoms = read_structure(options.structure)
    atoms.calc = make_calculator(options)
    name = Path(options.structure.rpartition("@")[0] or options.structure).stem
    output = options.output or Path(f"{name}-relaxed.xyz")
    format = _format(output)
    before = atoms.get_potential_energy()
    steps = relax(
        atoms,
        options.fmax,
        options.steps,
        OPTIMISERS[options.optimiser],
        options.cell,
        options.trajectory,
    )
    with replacing(output) as temporary:
        ase.io.write(temporary, atoms, format=format)
    energy, force = atoms.get_potential_energy(), largest_force(atoms)
    logger.info(
        "%s: energy %.4f eV, %.4f below the start; largest force %.4g eV/Å.",
        output,
        energy,
        before - energy,
        force,
    )
    if steps is None:
        logger.error(
            "lkm-calc: not relaxed to %g eV/Å within %d steps. Continue from %s, or use more "
            "--steps or another --optimiser.",
            options.fmax,
            options.steps,
            output,
        )
        return 1
    logger.info("Relaxed in %d steps (%s).", steps, options.optimiser)
    return 0


def _format(output: Path) -> str:
    """Return the ASE format for a file name."""
    try:
        return str(filetype(str(output), read=False))
    except UnknownFileTypeError as error:
        raise ValueError(
            f"--output is {output}: ASE does not recognise the format from this name. Use for "
            "example .xyz, .cif or CONTCAR."
        ) from error


def relax(
    atoms: ase.Atoms,
    fmax: float,
    steps: int = 1000,
    optimiser: type[Optimizer] = BFGS,
    cell: bool = False,
    trajectory: Path | None = None,
) -> int | None:
    """Relax a structure in place.

    Args:
        atoms: A structure with a calculator.
        fmax: Convergence criterion, largest force in eV/Å.
        steps: Maximum number of steps.
        optimiser: An ASE optimiser class.
        cell: Relax the cell as well.
        trajectory: .traj file of all steps.

    Returns:
        The number of steps, or None if not converged.

    Raises:
        ValueError: ``cell`` is True but the structure has none, or a number is not positive.
    """
    if not (0 < fmax < np.inf and steps > 0):
        raise ValueError(f"fmax is {fmax} and steps is {steps}; both must be positive and finite.")
    if cell and not has_stress(atoms):
        raise ValueError(
            "There is no cell to relax: the structure is not periodic or lacks a cell vector. "
            "Leave out --cell, or use a structure with a cell."
        )
    moved: Any = FrechetCellFilter(atoms, mask=_periodic_strains(atoms)) if cell else atoms
    with (
        optimiser(moved, logfile=None) as search,
        tqdm(unit="step", disable=hide_progress()) as bar,
    ):
        if trajectory is not None:
            trajectory.parent.mkdir(parents=True, exist_ok=True)
            writer = Trajectory(trajectory, "w", atoms)
            search.closelater(writer)
            search.attach(writer)
        search.attach(lambda: bar.update(search.nsteps - bar.n))
        search.attach(lambda: bar.set_postfix_str(f"{largest_force(atoms):.3g} eV/Å"))
        converged = search.run(fmax=fmax, steps=steps)
        return int(search.nsteps) if converged else None


def largest_force(atoms: ase.Atoms) -> float:
    """Return the magnitude of the largest force in eV/Å."""
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


def _periodic_strains(atoms: ase.Atoms) -> list[bool]:
    """Return which of xx, yy, zz, yz, xz, xy strain only periodic directions."""
    x, y, z = atoms.pbc
    return [bool(strain) for strain in (x, y, z, y and z, x and z, x and y)]
