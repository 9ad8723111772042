"""lkm-calc md."""

import argparse
import hashlib
import logging
from pathlib import Path

import ase
import numpy as np

from ..files import expanded
from ..md import ENSEMBLES, MDError, MDSettings, Simulation, plot_md, write_md_page
from ..page import check_packages
from ..uncertainty import ACTIONS
from .common import (
    Subcommands,
    add_calculator_options,
    add_command,
    add_structure,
    checksum,
    make_calculator,
    model_file,
    read_structure,
)
from .relax import relax

logger = logging.getLogger("lkm_calc")

MANUAL = """\
Molecular dynamics. Writes to the folder --output: the trajectory with momenta, energies and forces;
log.csv with energies and temperature, for periodic structures also pressure (bar) and volume (Å³);
a plot of it, md.png; and restart.json. With --on-extrapolation, extrapolation.csv lists the steps
outside the training distribution; --page marks them.

  lkm-calc md rmd17-ethanol ethanol.xyz --ps 20
  lkm-calc md rmd17-ethanol ethanol.xyz --ensemble nve --dtype float64 --relax --ps 20
  lkm-calc md rmd17-ethanol ethanol.xyz --temperature 1000 --on-extrapolation warn --page
  lkm-calc md member-1.safetensors member-2.safetensors box.cif --ensemble nose-hoover \\
      --temperature 350 --ps 100 --trajectory box.xyz --output runs/box
  lkm-calc md crystal.safetensors crystal.cif --ensemble npt-flexible --pressure 1 --ps 100

The npt ensembles use the equations of Martyna, Tobias and Klein and need a structure that is
periodic in three directions: npt-isotropic scales the cell (liquids, cubic crystals), npt-flexible
also changes its shape (other crystals). The bundled models were trained on single molecules; use a
model trained on periodic structures, preferably with stress.

Ctrl-C finishes the step and saves; the same command resumes, also after a crash. On a CPU the
result is bitwise identical to that of an uninterrupted run (with --compile if a kernel is used). A
larger --ps extends a finished run.

A run stops if forces are not finite, the temperature exceeds 10 times the target plus 1000 K, an
atom flies away, or the volume falls below 0.1 or rises above 10 times the initial one; its files
then end with the last valid state.

Exit status: 0 finished, 1 error, 3 interrupted.
"""

RELAXED = 0.01
"""Convergence criterion of --relax: largest force in eV/Å."""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "md", "molecular dynamics", MANUAL, run)
    add_calculator_options(parser)
    add_structure(parser)
    default = MDSettings()
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--ps", type=float, default=1.0, help="length in ps; default %(default)s")
    length.add_argument("--steps", type=int, help="length in steps, instead of --ps")
    parser.add_argument(
        "--ensemble", choices=ENSEMBLES, default=default.ensemble, help="default %(default)s"
    )
    numbers = {
        "temperature": "K; default %(default)s",
        "timestep": "fs; default %(default)s",
        "friction": "1/fs, for langevin; default %(default)s",
        "damping": "time constant of the thermostat in fs, not for nve and langevin; default "
        "%(default)s",
        "pressure-damping": "time constant of the barostat in fs, for npt; default %(default)s",
    }
    for name, text in numbers.items():
        value = getattr(default, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=float, default=value, help=text)
    parser.add_argument(
        "--pressure",
        type=float,
        metavar="BAR",
        help="required for the npt ensembles; 10000 bar = 1 GPa",
    )
    parser.add_argument(
        "--initial-temperature",
        type=float,
        metavar="K",
        help="of the initial velocities; default: --temperature, or twice that with --relax, "
        "because half of the kinetic energy turns into potential energy",
    )
    parser.add_argument(
        "--keep-velocities", action="store_true", help="start with the velocities of the structure"
    )
    parser.add_argument(
        "--relax", action="store_true", help=f"first relax the structure to {RELAXED} eV/Å"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="default %(default)s")
    parser.add_argument(
        "--compile", action="store_true", help="use a compiled kernel, see lkm-calc compile"
    )
    parser.add_argument(
        "--skin", type=float, default=1.0, help="of the neighbour list in Å; default %(default)s"
    )
    parser.add_argument("--zbl", action="store_true", help="add short-range repulsion (ZBL)")
    parser.add_argument(
        "--on-extrapolation",
        choices=ACTIONS,
        help="action if the structure leaves the training distribution: warn once, stop, or save "
        "it to extrapolation.extxyz",
    )
    parser.add_argument(
        "--output", type=expanded, metavar="FOLDER", help="runs/md-NAME if not given"
    )
    parser.add_argument(
        "--trajectory",
        default=default.trajectory,
        metavar="FILE",
        help="file name in that folder, .traj or .xyz; default %(default)s",
    )
    parser.add_argument(
        "--page",
        action="store_true",
        help="also write md.html, an interactive page; needs pip install lkm-calc[report]",
    )
    intervals = {"log": default.log_every, "frame": default.frame_every, "restart": 1000}
    for name, steps in intervals.items():
        parser.add_argument(
            f"--{name}-every", type=int, default=steps, metavar="STEPS", help="default %(default)s"
        )


def run(options: argparse.Namespace) -> int:
    """Start or continue a run, and draw its log."""
    if options.page:
        check_packages()
    settings = _settings(options)
    steps = options.steps
    if steps is None:
        steps = round(options.ps * 1000 / settings.timestep)
    if steps < 1:
        raise ValueError(f"The run has {steps} steps; give a positive length.")
    atoms = read_structure(options.structure)
    name = Path(options.structure.rpartition("@")[0] or options.structure).stem
    folder = options.output or Path("runs") / f"md-{name}"
    atoms.calc = make_calculator(
        options,
        compile=options.compile,
        skin=options.skin,
        zbl=options.zbl,
        on_extrapolation=options.on_extrapolation,
        extrapolation_file=folder / "extrapolation.extxyz",
    )
    identity = {
        "models": [f"SHA-256 {checksum(model_file(model))}" for model in options.models],
        "dtype": options.dtype,
        "structure": f"SHA-256 {_digest(atoms)}",
        "relax": options.relax,
        "zbl": options.zbl,
    }
    if options.relax and not (folder / "restart.json").exists():
        logger.info("Relaxing to %g eV/Å.", RELAXED)
        if relax(atoms, RELAXED) is None:
            raise ValueError(
                f"{options.structure} did not relax to {RELAXED} eV/Å in 1000 steps. Inspect it "
                "with lkm-calc relax, or start without --relax."
            )
    simulation = Simulation(atoms, settings, folder, options.restart_every, identity)
    if simulation.resumed:
        logger.info("Resuming from step %d of %s.", simulation.step, folder)
        if simulation.step >= steps:
            logger.info("All %d steps are done; use a larger --ps to extend the run.", steps)
    try:
        finished = simulation.run(steps)
    except MDError:
        if simulation.step:  # otherwise there is nothing to draw
            _report(simulation, options.page)
        raise
    _report(simulation, options.page)
    if not finished:
        logger.info(
            "Stopped at step %d of %d; run the same command to resume.", simulation.step, steps
        )
        return 3
    logger.info(
        "%d steps (%g ps): %s, log.csv and md.png are in %s.",
        simulation.step,
        simulation.step * settings.timestep / 1000,
        settings.trajectory,
        folder,
    )
    return 0


def _report(simulation: Simulation, page: bool) -> None:
    """Draw the log of a run, write its page if requested, and log how often a guard reacted."""
    record, settings = simulation.record, simulation.settings
    formula = simulation.atoms.get_chemical_formula()
    title = f"{formula}, {settings.ensemble}, {settings.timestep:g} fs steps"
    plot_md(record.log, record.folder / "md.png", title)
    if page:
        write_md_page(
            record.log,
            record.trajectory,
            settings.frame_every,
            record.folder / "md.html",
            title,
            record.extrapolation.path,
        )
    outside = record.extrapolation.steps()
    if outside:
        logger.info("%d step(s) outside the training distribution: extrapolation.csv.", outside)


def _settings(options: argparse.Namespace) -> MDSettings:
    initial = options.initial_temperature
    if initial is None and options.relax and not options.keep_velocities:
        initial = 2 * options.temperature
    return MDSettings(
        ensemble=options.ensemble,
        temperature=options.temperature,
        timestep=options.timestep,
        friction=options.friction,
        damping=options.damping,
        pressure=options.pressure,
        pressure_damping=options.pressure_damping,
        initial_temperature=initial,
        keep_velocities=options.keep_velocities,
        seed=options.seed,
        log_every=options.log_every,
        frame_every=options.frame_every,
        trajectory=options.trajectory,
    )


def _digest(atoms: ase.Atoms) -> str:
    """Return a checksum of the parts of a structure that determine a run."""
    arrays = [atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, atoms.get_masses()]
    arrays += [atoms.get_momenta()] if atoms.has("momenta") else []
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
