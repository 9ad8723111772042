"""Extrapolation of models trained on acetylacetone at 300 K.

    python -m benchmarks.extrapolation                       # trains every recipe below
    python -m benchmarks.extrapolation --recipes ace pamnet  # trains some of them
    python -m benchmarks.extrapolation --models MODEL ...    # evaluates trained models

The frames are those of ``benchmarks/acetylacetone`` (GFN2-xTB, made by
``benchmarks.make_acetylacetone_gfn2``): 450 training and 50 validation frames; test frames are from
MD at 300, 600 and 1000 K, a relaxed scan of a dihedral angle across its barrier, the transfer of
the proton between the oxygens, and a bond stretched until it breaks. Energies of the last three are
relative to the first frame of each. Test frames are not used for any selection.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lkm_calc import EnergyModel, load_model
from train.config import config_from_table, merge
from train.data import GraphFrames
from train.fit import fit
from train.formats import read_frames
from train.report import predict

FOLDER = Path(__file__).parent / "acetylacetone"
DYNAMICS = ("test_300K", "test_600K", "test_1000K")
PATHS = ("dihedral", "proton", "stretch")

NARROW = {"hidden": 64, "num_layers": 3, "num_radial": 6, "num_spherical_radial": 3}
DIMENET = {"hidden": 64, "num_blocks": 3, "triplet_dim": 32, "output_dim": 64, "num_spherical": 6}
LINEAR = {
    "node_dependent": False,
    "runtime_geometry": False,
    "gated": False,
    "linear_readouts": True,
}
INVARIANT = {
    "loss": {"kind": "l2", "energy": 2.0, "gamma": "auto"},
    "optimiser": {"weight_decay": 0.0},
}
RECIPES: dict[str, dict[str, Any]] = {
    "ace": {},
    "ace-no-decay": {"optimiser": {"weight_decay": 0.0}},
    "ace-decay": {"optimiser": {"weight_decay": 0.1}},
    "ace-pretrained": {"pretraining": {"calculator": "gfn1-xtb"}},
    "ace-pretrained-1200K": {"pretraining": {"calculator": "gfn1-xtb", "temperature": 1200.0}},
    "ace-base": {"run": {"finetune": "rmd17-base"}},
    "ace-gfn2": {"run": {"finetune": "qm9-gfn2"}},
    "ace-linear": {"model": {"hypers": LINEAR}},
    "ace-linear-decay": {"model": {"hypers": LINEAR}, "optimiser": {"weight_decay": 0.1}},
    "dimenet++": {"model": {"name": "dimenet++", "hypers": DIMENET}, **INVARIANT},
    "pamnet": {"model": {"name": "pamnet", "hypers": NARROW}, **INVARIANT},
    "mxmnet": {"model": {"name": "mxmnet", "hypers": NARROW}, **INVARIANT},
}
"""Options by name; ``ace`` is the default of every option, ``ace-pretrained`` adds a first stage on
dynamics with GFN1-xTB, ``ace-base`` starts from the base model and ``ace-gfn2`` from that of the
method of the labels, ``ace-linear`` is closest to MACE, and the last three are those of
``train/configs/rmd17-*.toml``."""


def train(recipe: str, epochs: int, seed: int, work: Path) -> Path:
    """Train a recipe, going on with a run that was stopped, and return its model file."""
    common = {
        "data": {"train": str(FOLDER / "train_300K.h5"), "n_train": 450, "n_validation": 50},
        "optimiser": {"epochs": epochs},
        "run": {
            "directory": str(work / f"{recipe}-{epochs}-{seed}"),
            "seed": seed,
            "validate_every": 5,
        },
    }
    config = config_from_table(merge(common, RECIPES[recipe]))
    path = fit(config)
    if path is None:
        raise SystemExit("Stopped; the same command goes on.")
    return path


def measured(model: EnergyModel) -> dict[str, dict[str, float]]:
    """Return errors by set: forces in meV/Å, energies in meV."""
    found = {}
    for name in (*DYNAMICS, *PATHS):
        frames = read_frames(FOLDER / f"{name}.h5", check_units=False)
        predictions = predict(model, GraphFrames(frames, model, torch.device("cpu")), 16)
        assert predictions.forces is not None
        energies = 1000 * predictions.energies.difference.numpy()
        if name in PATHS:
            energies = energies - energies[0]
        forces = 1000 * predictions.forces.difference.numpy()
        found[name] = {
            "force_mae": float(np.abs(forces).mean()),
            "force_rmse": float(np.sqrt((forces**2).mean())),
            "energy_mae": float(np.abs(energies).mean()),
            "energy_rmse": float(np.sqrt((energies**2).mean())),
        }
    return found


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the figures as a table."""
    lines = [f"{'':24}" + "".join(f"{name:>16}" for name in (*DYNAMICS, *PATHS))]
    lines.append(f"{'':24}" + f"{'F MAE / RMSE':>16}" * 3 + f"{'E RMSE':>16}" * 3)
    for label, sets in results.items():
        cells = [f"{sets[n]['force_mae']:.1f} / {sets[n]['force_rmse']:.1f}" for n in DYNAMICS]
        cells += [f"{sets[n]['energy_rmse']:.1f}" for n in PATHS]
        lines.append(f"{label:24}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Train, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, help="(default: all)")
    parser.add_argument("--models", nargs="+", default=[], help="model files to measure instead")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/extrapolation"))
    parser.add_argument("--output", type=Path, help="JSON file to which the figures are added")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipes = options.recipes or ([] if options.models else list(RECIPES))
    results = {path: measured(load_model(path)) for path in options.models}
    for recipe in recipes:
        path = train(recipe, options.epochs, options.seed, options.work)
        results[recipe] = measured(load_model(path))
    if options.output:
        old = json.loads(options.output.read_text()) if options.output.exists() else {}
        options.output.write_text(json.dumps(old | results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
