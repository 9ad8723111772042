"""lkm-calc models."""

import argparse

from ..files import expanded
from ..page import check_packages, write_page
from ..potential import bundled_models
from .common import Subcommands, add_command, add_open_option, show_page, tell
from .info import model_facts
from .models_page import errors_and_mark, models_page

MANUAL = """\
List the bundled models with their test errors, or write an interactive page about them: errors,
architectures, training data and the molecules in 3D. The page is a single file, for any browser,
without network access; it needs pip install lkm-calc[report].

  lkm-calc models
  lkm-calc models --page models.html --open
"""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    summary = "list the bundled models and their errors"
    parser = add_command(commands, "models", summary, MANUAL, run)
    parser.add_argument(
        "--page", type=expanded, metavar="HTML", help="write an interactive page instead"
    )
    add_open_option(parser)


def run(options: argparse.Namespace) -> int:
    """Print a table of the bundled models, or write a page about them."""
    if options.open and not options.page:
        raise ValueError("--open needs a page: add --page models.html.")
    if options.page:
        check_packages()
        write_page(options.page, models_page([(n, model_facts(n)) for n in bundled_models()]))
        show_page(options.page, options.open)
        return 0
    rows: list[tuple[str, ...]] = [
        ("model", "elements", "energy, meV", "forces, meV/Å", "parameters", "MB")
    ]
    for name in bundled_models():
        facts = model_facts(name)
        errors, mark = errors_and_mark(facts)
        rows.append(
            (
                name,
                " ".join(facts["elements"]),
                *(
                    f"{errors[key]:.2f}{mark}" if key in errors else "-"
                    for key in ("energy_mae", "force_mae")
                ),
                f"{facts['parameters']:,}",
                f"{facts['bytes'] / 1e6:.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        tell("  ".join(f"{t:{w}}" for t, w in zip(row, widths, strict=True)).rstrip())
    tell("MAE on test frames (* on the validation frames that selected the best epoch).")
    tell("See lkm-calc info MODEL for details.")
    return 0
