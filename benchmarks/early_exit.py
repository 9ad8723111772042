"""Errors of trained models truncated after their first layers: does LKM make layers redundant?

Each layer of the architectures here contributes to the energy, so that a model can be truncated
after any layer without retraining. Energies are compared after subtracting the mean difference.

    python -m benchmarks.early_exit rmd17_ethanol_test_01.npz plain.safetensors mixed.safetensors
"""

import argparse
import json
from pathlib import Path

import torch

from lkm_calc import EnergyModel, build_model, load_model
from lkm_calc.runtime import fast_matmul
from train.data import GraphFrames
from train.formats import read_frames
from train.report import predict

DEPTHS = ("num_blocks", "num_layers")
"""What the architectures call their number of layers."""


def cut(model: EnergyModel, layers: int) -> EnergyModel:
    """Return a copy of the model that ends after its first layers."""
    depth = next(name for name in DEPTHS if name in model.hypers)
    shorter = build_model(model.name, **(model.hypers | {depth: layers})).to(model.dtype)
    wanted = shorter.state_dict()
    shorter.load_state_dict({k: v for k, v in model.state_dict().items() if k in wanted})
    return shorter.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("frames", help="data file with forces")
    parser.add_argument("models", nargs="+", help="model files or bundled models")
    parser.add_argument("--n", type=int, default=300, help="number of frames (default 300)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    frames = read_frames(options.frames)
    frames = frames.select(range(min(options.n, len(frames))))
    results = {}
    for name in options.models:
        model = load_model(name)
        depth = next(model.hypers[key] for key in DEPTHS if key in model.hypers)
        data = GraphFrames(frames, model, torch.device("cpu"))
        rows = []
        with fast_matmul():
            for layers in range(1, depth + 1):
                found = predict(cut(model, layers), data, 16)
                off = found.energies.difference
                rows.append(
                    {
                        "layers": layers,
                        "energy MAE, meV": 1e3 * (off - off.mean()).abs().mean().item(),
                        "force MAE, meV/Å": 1e3 * found.forces.difference.abs().mean().item(),
                    }
                )
        results[name] = rows
        print(f"\n{name}: layers, energy MAE in meV, force MAE in meV/Å")
        for row in rows:
            print("  {:d} {:10.1f} {:10.1f}".format(*row.values()))
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
