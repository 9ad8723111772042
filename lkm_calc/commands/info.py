"""lkm-calc info."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from ..potential import load_model
from ..uncertainty import calibration_of
from .common import Subcommands, add_command, add_model, model_file, tell

MANUAL = """\
Describe a model file: architecture, elements, cutoff, training data and errors.

  lkm-calc info rmd17-ethanol
  lkm-calc info model.safetensors --json
"""

ERRORS = {
    "energy_mae": "energy MAE, meV",
    "energy_rmse": "energy RMSE, meV",
    "energy_per_atom_mae": "energy MAE per atom, meV",
    "force_mae": "force MAE, meV/Å",
    "force_rmse": "force RMSE, meV/Å",
    "stress_mae": "stress MAE, meV/Å³",
}
"""Labels of the errors stored in a model file."""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "info", "describe a model file", MANUAL, run)
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the description of a model file."""
    facts = model_facts(options.model)
    if options.json:
        tell(json.dumps(facts, indent=1))
    else:
        lines = {name: str(value) for name, value in _lines(facts).items() if value}
        width = max(map(len, lines))
        tell("\n".join(f"{name:{width}}  {text}" for name, text in lines.items()))
    return 0


def model_facts(name: str) -> dict[str, Any]:
    """Return the metadata of a model file as JSON values.

    Raises:
        ModelFileError: As for :func:`lkm_calc.load_model`.
    """
    model = load_model(name)
    path = model_file(name)
    calibration = calibration_of(model)
    structure = path.with_suffix(".xyz")
    return {
        "file": str(path),
        "structure": str(structure) if structure.exists() else None,
        "bytes": path.stat().st_size,
        "architecture": model.name,
        "hypers": model.hypers,
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "cutoff": model.cutoff,
        "elements": list(model.elements),
        "provenance": model.provenance,
        "calibrated": calibration is not None,
    }


def _lines(facts: Mapping[str, Any]) -> dict[str, Any]:
    training = facts["provenance"]
    hypers = ", ".join(f"{key} {value}" for key, value in facts["hypers"].items())
    lines: dict[str, Any] = {
        "file": f"{facts['file']}, {facts['bytes'] / 1e6:.1f} MB",
        "structure": facts["structure"],
        "architecture": f"{facts['architecture']}, {hypers}",
        "parameters": f"{facts['parameters']:,} in {facts['dtype']}",
        "elements": ", ".join(facts["elements"]),
        "cutoff": f"{facts['cutoff']:g} Å",
        "energy unit": training.get("energy_unit", "eV"),
    }
    config = training.get("config", {})
    for name, file in training.get("files", {}).items():
        count = config.get("data", {}).get("n_train") if name == "train" else None
        text = f"{count} frames of {file['name']}" if count else file["name"]
        lines[f"{name} data"] = f"{text}, SHA-256 {file['sha256'][:16]}…"
    lines["LKM γ"] = config.get("loss", {}).get("gamma")
    made = ("version", "date", "device")
    if all(key in training for key in made):
        lines["made with"] = "lkm-calc {}, {}, on {}".format(*(training[key] for key in made))
    for name in ("validation", "test"):
        errors = training.get(f"{name}_errors", {})
        for key, text in ERRORS.items():
            if key in errors:
                lines[f"{name} {text}"] = f"{errors[key]:.2f}"
    lines["guards"] = (
        "calibrated" if facts["calibrated"] else "not calibrated, see lkm-train calibrate"
    )
    return lines
