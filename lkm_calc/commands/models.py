"""lkm-calc models."""

import argparse

from ..potential import bundled_models
from .common import Subcommands, add_command, tell
from .info import model_facts

MANUAL = """\
List the bundled models with their test errors.

  lkm-calc models
"""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    add_command(commands, "models", "list the bundled models and their errors", MANUAL, run)


def run(_options: argparse.Namespace) -> int:
    """Print a table of the bundled models."""
    rows: list[tuple[str, ...]] = [
        ("model", "elements", "energy, meV", "forces, meV/Å", "parameters", "MB")
    ]
    for name in bundled_models():
        facts = model_facts(name)
        training = facts["provenance"]
        errors = training.get("test_errors") or training["validation_errors"]
        mark = "" if "test_errors" in training else "*"
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
