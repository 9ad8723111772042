"""lkm-calc vib."""

import argparse
import logging

from ase.io.jsonio import encode

from ..files import expanded, replacing
from ..potential import vibrations
from .common import (
    Subcommands,
    add_calculator_options,
    add_command,
    add_structure,
    make_calculator,
    read_structure,
    tell,
)
from .relax import relax

logger = logging.getLogger("lkm_calc")

MANUAL = """\
Relax a structure and print its harmonic vibrations: energies in meV, frequencies in cm^-1
(imaginary ones, marked with an i, indicate a saddle point) and the zero-point energy. Translations
and rotations are included, with frequencies near zero. The default dtype is float64.

  lkm-calc vib rmd17-ethanol ethanol.xyz
  lkm-calc vib rmd17-ethanol ethanol.xyz -o vib.json --modes modes.xyz

Read --output with ase.vibrations.VibrationsData.read, for spectra and thermochemistry, and --modes
with viewers such as Jmol.
"""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "vib", "harmonic vibrations", MANUAL, run)
    add_calculator_options(parser)
    parser.set_defaults(dtype="float64")
    add_structure(parser)
    parser.add_argument(
        "--fmax", type=float, default=0.001, help="relax to this, eV/Å; default %(default)s"
    )
    parser.add_argument(
        "--no-relax", action="store_true", help="use the structure as is, e.g. a saddle point"
    )
    parser.add_argument("-o", "--output", type=expanded, metavar="JSON", help="results for ASE")
    parser.add_argument("--modes", type=expanded, metavar="XYZ", help="modes for viewers")


def run(options: argparse.Namespace) -> int:
    """Print the vibrations of a structure."""
    atoms = read_structure(options.structure)
    atoms.calc = make_calculator(options)
    if not options.no_relax:
        steps = relax(atoms, options.fmax)
        if steps is None:
            raise ValueError(
                f"{options.structure} did not relax to {options.fmax:g} eV/Å in 1000 steps. "
                "Inspect it with lkm-calc relax, or use a larger --fmax."
            )
        logger.info("Relaxed in %d steps.", steps)
    found = vibrations(atoms, options.fmax)
    tell(found.tabulate().rstrip())
    if options.output:
        with replacing(options.output) as temporary:
            temporary.write_text(encode(found) + "\n", encoding="utf-8")
    if options.modes:
        with replacing(options.modes) as temporary:
            found.write_jmol(temporary)
    return 0
