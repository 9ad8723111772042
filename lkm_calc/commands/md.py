"""lkm-calc md."""

import argparse
import hashlib
import logging
from pathlib import Path

import ase
import numpy as np

from ..files import expanded
from ..md import ENSEMBLES, MDSettings, Simulation, plot_md
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
Molecular dynamics. The folder of --output receives the trajectory with momenta, energies and
forces; log.csv with energies and temperature, of periodic structures with pressure (bar) and volume
(Å³) too; md.png, a picture of it; and restart.json.

  lkm-calc md rmd17-ethanol ethanol.xyz --ps 20
  lkm-calc md rmd17-ethanol ethanol.xyz --ensemble nve --dtype float64 --relax --ps 20
  lkm-calc md member-1.safetensors member-2.safetensors box.cif --ensemble nose-hoover \\
      --temperature 350 --ps 100 --trajectory box.xyz --output runs/box
  lkm-calc md crystal.safetensors crystal.cif --ensemble npt-flexible --pressure 1 --ps 100

The npt ensembles hold temperature and pressure by the equations of Martyna, Tobias and Klein, where
the structure repeats in three directions: npt-isotropic scales the cell, for liquids and cubic
crystals; npt-flexible changes its shape as well, for other crystals. The bundled models know single
molecules only: take a model of your own that was trained on periodic structures, best with stress.

Ctrl-C finishes the step and saves; the same command then goes on from there, as it does after a
crash, on the CPU to the same numbers, bit for bit, as if it had not stopped (with --compile where
there is a kernel). With a larger --ps it makes a finished run longer.

A run stops where forces are not finite, the temperature is beyond 10 times the one asked for plus
1000 K, an atom flies off, or the volume becomes less than 0.1 or more than 10 times the first one;
its files then end with the last good state.

Exit status: 0 finished, 1 refused or gone wrong, 3 stopped before the end.
"""

RELAXED = 0.01
"""Largest force in eV/Å that --relax leaves."""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "md", "molecular dynamics", MANUAL, run)
    add_calculator_options(parser)
    add_structure(parser)
    default = MDSettings()
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--ps", type=float, default=1.0, help="length; default %(default)s")
    length.add_argument("--steps", type=int, help="length in steps, instead of --ps")
    parser.add_argument(
        "--ensemble", choices=ENSEMBLES, default=default.ensemble, help="default %(default)s"
    )
    numbers = {
        "temperature": "K; default %(default)s",
        "timestep": "fs; default %(default)s",
        "friction": "1/fs, of langevin; default %(default)s",
        "damping": "time constant in fs, of the thermostat of all but nve and langevin; default "
        "%(default)s",
        "pressure-damping": "time constant in fs, of the barostat of npt; default %(default)s",
    }
    for name, text in numbers.items():
        value = getattr(default, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=float, default=value, help=text)
    parser.add_argument(
        "--pressure",
        type=float,
        metavar="BAR",
        help="of the npt ensembles, which need one; 10000 bar are 1 GPa",
    )
    parser.add_argument(
        "--initial-temperature",
        type=float,
        metavar="K",
        help="of the first velocities; default: --temperature, and with --relax twice that, "
        "because half of it goes into the vibrations at once",
    )
    parser.add_argument(
        "--keep-velocities", action="store_true", help="start with those of the structure"
    )
    parser.add_argument(
        "--relax", action="store_true", help=f"first relax the structure to {RELAXED} eV/Å"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="default %(default)s")
    parser.add_argument(
        "--compile", action="store_true", help="faster steps, by a C++ compiler: lkm-calc compile"
    )
    parser.add_argument("--skin", type=float, default=1.0, help="Å; default %(default)s")
    parser.add_argument(
        "--zbl", action="store_true", help="keep atoms apart that come too close for the model"
    )
    parser.add_argument(
        "--on-extrapolation",
        choices=ACTIONS,
        help="when the structure leaves what the model was trained on; save puts it into "
        "extrapolation.extxyz",
    )
    parser.add_argument(
        "--output", type=expanded, metavar="FOLDER", help="runs/md-NAME if not given"
    )
    parser.add_argument(
        "--trajectory",
        default=default.trajectory,
        metavar="FILE",
        help="name in that folder, .traj or .xyz; default %(default)s",
    )
    intervals = {"log": default.log_every, "frame": default.frame_every, "restart": 1000}
    for name, steps in intervals.items():
        parser.add_argument(
            f"--{name}-every", type=int, default=steps, metavar="STEPS", help="default %(default)s"
        )


def run(options: argparse.Namespace) -> int:
    """Start or continue a run, and draw its log."""
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
                f"{options.structure} does not relax to {RELAXED} eV/Å in 1000 steps. Look at it "
                "with lkm-calc relax, or start without --relax."
            )
    simulation = Simulation(atoms, settings, folder, options.restart_every, identity)
    if simulation.resumed:
        logger.info("Going on from step %d of %s.", simulation.step, folder)
        if simulation.step >= steps:
            logger.info("It has its %d steps; a larger --ps makes it longer.", steps)
    finished = simulation.run(steps)
    title = f"{atoms.get_chemical_formula()}, {settings.ensemble}, {settings.timestep:g} fs steps"
    plot_md(simulation.record.log, folder / "md.png", title)
    if not finished:
        logger.info(
            "Stopped at step %d of %d; the same command goes on from here.", simulation.step, steps
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
    """Return a checksum of what of a structure decides a run."""
    arrays = [atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, atoms.get_masses()]
    arrays += [atoms.get_momenta()] if atoms.has("momenta") else []
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
