"""Does LKM make layers more similar? Information in the atom embeddings of each layer.

Small PAMNets are trained on U0 of QM9 with and without LKM, all else equal. Before training and
after 10, 30 and 100 % of the steps, embeddings of atoms in held-out molecules are computed with the
averaged weights. For each layer, the study measures

- the dimensionality of the embeddings, as their effective rank;
- the similarity to the embeddings of other layers, as linear CKA;
- the accuracy of linear probes for the environment of the atom, one, two and three bonds away.
  Probes are fitted to carbon atoms only, so that the element contains no information, and tested on
  other molecules. The balanced accuracy of guessing is 1/3 (neighbours) or 1/2.

    python -m studies.layers --data qm9_130831.npz --work runs/layers

Arms with existing results are not run again, and stopped ones are resumed. With --quick every arm
runs only two steps; --data is then optional, with sixty molecules with made-up energies instead of
QM9.
"""

import argparse
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
import torch
from ase.build import molecule
from numpy.typing import NDArray

from lkm_calc import EnergyModel
from train.config import Config, config_from_table
from train.data import Frames, GraphFrames, random_split
from train.fit import Record, fit, prepare_model
from train.formats import read_frames, write_hdf5
from train.report import errors_of, model_output, predict, write_json, write_text
from train.state import TrainingState

from .arms import Arm
from .environments import HOPS, environments
from .layers_report import report as report
from .similarity import (
    Floats,
    Ints,
    balanced_accuracy,
    effective_rank,
    fit_probe,
    linear_cka,
)

CARBON = 6
DRAWN = 100
"""Atoms whose projections are kept for the picture."""
BATCH = 64
"""Molecules embedded at once."""


@dataclass(frozen=True)
class Plan:
    """How large the study is."""

    n_train: int = 3000
    n_validation: int = 300
    n_probe: int = 800
    """Molecules of the measurements; the probes are fitted to half of them."""
    epochs: int = 5
    hidden: int = 32
    shares: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0)
    """Of the steps, after which the layers are measured."""
    gammas: tuple[float, ...] = (0.0, 0.02, 1.0)
    """The paper's, and one far larger."""
    seeds: tuple[int, ...] = (1, 2, 3)


QUICK = Plan(
    n_train=16,
    n_validation=4,
    n_probe=40,
    epochs=2,
    hidden=8,
    shares=(0.0, 0.5, 1.0),
    gammas=(0.0, 1.0),
    seeds=(1,),
)
STAND_IN = ("CH3CH2OH", "C5H5N", "C3H4_C3v", "C4H4O", "CH3CHO")
"""Molecules of ASE with rings, N, O and carbon of every kind, for quick runs."""


class Probes(NamedTuple):
    """Molecules that the layers are measured on."""

    data: GraphFrames
    carbon: NDArray[np.bool_]
    """(atoms)."""
    fitted: NDArray[np.bool_]
    """(carbon atoms) whether they are of a molecule that the probes are fitted to."""
    classes: Mapping[str, Ints]
    """(carbon atoms) for each key of HOPS, as classes 0, 1 and so on."""


def write_stand_in(path: Path) -> Path:
    """Write displaced molecules with energies at random to a file like QM9's; return its path."""
    rng = np.random.default_rng(0)
    found = [molecule(name) for name in STAND_IN * 12]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        N=np.array([len(atoms) for atoms in found]),
        Z=np.concatenate([atoms.numbers for atoms in found]),
        R=np.concatenate(
            [atoms.positions + rng.normal(0, 0.02, (len(atoms), 3)) for atoms in found]
        ),
        U0=np.array([rng.normal(-30 * len(atoms), 0.1) for atoms in found]),
    )
    return path


def draw(path: Path, work: Path, plan: Plan) -> Frames:
    """Write the molecules to train on to a file of their own, and return other molecules.

    The choice is the same for all arms; which of the file validate is a matter of the seed.
    """
    frames = read_frames(path, "qm9", target="U0")
    split = random_split(len(frames), plan.n_train + plan.n_validation, plan.n_probe, seed=0)
    learnt = work / learnt_name(plan)
    if not learnt.exists():
        write_hdf5(frames.select(split.train), learnt, "drawn from QM9 by studies.layers")
    return frames.select(split.validation)


def learnt_name(plan: Plan) -> str:
    """Return the name of the file with the molecules to train on."""
    return f"qm9-{plan.n_train + plan.n_validation}.h5"


def arm_of(plan: Plan, gamma: float, seed: int) -> Arm:
    """Return an arm of the study."""
    hypers = dict(hidden=plan.hidden, num_layers=3, num_radial=6, num_spherical_radial=3)
    config = config_from_table(
        {
            "data": {
                "train": learnt_name(plan),
                "n_train": plan.n_train,
                "n_validation": plan.n_validation,
            },
            "model": {"name": "pamnet", "hypers": hypers},
            "loss": {"kind": "l1", "energy": 1.0, "forces": 0.0, "gamma": gamma},
            "optimiser": {"epochs": plan.epochs, "batch_size": 16, "warmup_steps": 100},
            "run": {"seed": seed, "device": "cpu", "eval_batch_size": BATCH},
        }
    )
    return Arm("layers", {"gamma": f"{gamma:g}", "seed": str(seed)}, config)


def identity_of(arm: Arm, plan: Plan) -> dict[str, Any]:
    """Return what the figures of an arm depend on, as JSON values without paths."""
    sizes = {k: v for k, v in asdict(plan).items() if k not in ("gammas", "seeds")}
    identity: dict[str, Any] = json.loads(json.dumps({"plan": sizes, "changes": arm.changes}))
    return identity


def probes_of(frames: Frames, model: EnergyModel) -> Probes:
    """Return molecules with the surroundings of their carbon atoms."""
    found: dict[str, list[Ints]] = {name: [] for name in HOPS}
    for first, last in itertools.pairwise(frames.starts):
        atoms = ase.Atoms(frames.numbers[first:last], frames.positions[first:last])
        for name, values in environments(atoms).items():
            found[name].append(values)
    carbon = frames.numbers == CARBON
    classes = {name: np.concatenate(parts)[carbon] for name, parts in found.items()}
    classes["neighbours"] = np.clip(classes["neighbours"], 2, 4) - 2  # others are contacts
    data = GraphFrames(frames, model, torch.device("cpu"))
    return Probes(data, carbon, frames.atom_frame[carbon] < len(frames) // 2, classes)


def embed(model: EnergyModel, data: GraphFrames) -> Floats:
    """Return the embeddings of every atom after every layer, (layers, atoms, dim)."""
    parts = [
        torch.stack(model_output(model, data.batch(indices)).embeddings).double().numpy()
        for indices in data.in_order(BATCH)
    ]
    return np.concatenate(parts, axis=1)


def measure(model: EnergyModel, probes: Probes) -> dict[str, Any]:
    """Return the model's error on the molecules, and the figures of its layers.

    ``mae`` in meV; ``lkm`` and ``norm`` as in :class:`train.report.LayerStatistics`; by layer
    ``rank`` and ``cka`` (with each layer), over all atoms and over carbon, and ``probes``.
    """
    predictions = predict(model, probes.data, BATCH)
    layers = embed(model, probes.data)
    carbon = layers[:, probes.carbon]
    return {
        "mae": rounded(errors_of(predictions).energy_mae),
        "lkm": rounded(predictions.layers.lkm),
        "norm": rounded(predictions.layers.norm),
        "rank": rounded([effective_rank(layer) for layer in layers]),
        "cka": rounded([[linear_cka(x, y) for y in layers] for x in layers]),
        "carbon_rank": rounded([effective_rank(layer) for layer in carbon]),
        "carbon_cka": rounded([[linear_cka(x, y) for y in carbon] for x in carbon]),
        "probes": {
            name: rounded([accuracy(layer, classes, probes.fitted) for layer in carbon])
            for name, classes in probes.classes.items()
        },
    }


def accuracy(layer: Floats, classes: Ints, fitted: NDArray[np.bool_]) -> float:
    """Return the balanced accuracy of a probe on the rows that it was not fitted to."""
    probe = fit_probe(layer[fitted], classes[fitted])
    return balanced_accuracy(probe.predict(layer[~fitted]), classes[~fitted])


def projection(model: EnergyModel, probes: Probes) -> dict[str, Any]:
    """Return the first carbon atoms on the two main axes: of all layers together, and of the last.

    ``together`` (layers, drawn, 2), ``last`` (drawn, 2), and their ``neighbours`` as classes.
    """
    carbon = embed(model, probes.data)[:, probes.carbon]
    together = principal(carbon.reshape(-1, carbon.shape[2])).reshape(*carbon.shape[:2], 2)
    return {
        "together": rounded(together[:, :DRAWN].tolist()),
        "last": rounded(principal(carbon[-1])[:DRAWN].tolist()),
        "neighbours": probes.classes["neighbours"][:DRAWN].tolist(),
    }


def principal(x: Floats) -> Floats:
    """Return rows on the two axes of largest variance, (rows, 2)."""
    centred = x - x.mean(0)
    axes: Floats = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    return axes


def rounded(value: Any) -> Any:
    """Return a number, or nested lists of them, with four digits."""
    return [rounded(v) for v in value] if isinstance(value, list) else float(f"{value:.4g}")


def averaged_model(config: Config) -> tuple[EnergyModel, int]:
    """Return the averaged weights of a run as it stands, and its step."""
    record = Record(config)
    frames = read_frames(config.data.train)
    split = random_split(len(frames), *config.data.sizes(len(frames)), config.run.seed)
    model = prepare_model(config, frames.select(split.train))
    state = TrainingState.create(model, config.optimiser)
    state.load(record.state, record.identity)
    return state.averaged_model, state.step


def train_and_measure(config: Config, plan: Plan, probes: Probes) -> list[dict[str, Any]] | None:
    """Train an arm and return its figures at each share of the steps; None if it was stopped."""
    kept = Path(config.run.directory) / "measured.json"
    rows = json.loads(kept.read_text(encoding="utf-8"))["rows"] if kept.exists() else []
    total = plan.epochs * -(-plan.n_train // config.optimiser.batch_size)
    for share in plan.shares[len(rows) :]:
        end = round(share * total)
        fit(config, stop_after=end)
        model, step = averaged_model(config)
        if step != end:
            return None
        rows.append({"share": share, "step": step, **measure(model, probes)})
        write_json(kept, {"rows": rows})
    return rows


def run(data: Path, work: Path, results: Path, plan: Plan) -> bool:
    """Run the arms whose results are not there, a seed after the other; tell if all are done."""
    others = draw(data, work, plan)
    probes: Probes | None = None
    for seed, gamma in itertools.product(plan.seeds, plan.gammas):
        arm = arm_of(plan, gamma, seed)
        identity, path = identity_of(arm, plan), results / f"{arm.name}.json"
        if path.exists() and json.loads(path.read_text("utf-8"))["configuration"] == identity:
            continue
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        config = replace(
            arm.config,
            data=replace(arm.config.data, train=str(work / learnt_name(plan))),
            run=replace(arm.config.run, directory=str(work / f"{arm.name}_{digest}")),
        )
        if probes is None:
            probes = probes_of(others, prepare_model(config, others))
        rows = train_and_measure(config, plan, probes)
        if rows is None:
            return False
        content = {"configuration": identity, "gamma": gamma, "seed": seed, "checkpoints": rows}
        if seed == plan.seeds[0]:
            content["projection"] = projection(averaged_model(config)[0], probes)
        write_text(path, json.dumps(content, ensure_ascii=False) + "\n")  # write_json indents
        print(f"{arm.name}: {rows[-1]['mae']:.0f} meV after {rows[-1]['step']} steps", flush=True)
    return True


def main() -> None:
    """Run the study and draw its picture."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.layers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="QM9 as train/formats/qm9.py packs it")
    parser.add_argument("--work", type=Path, default=Path("runs/layers"), help="temporary files")
    parser.add_argument("--quick", action="store_true", help="a few steps, results into --work")
    options = parser.parse_args()
    root = Path(__file__).parents[1]
    results, images = root / "studies" / "results" / "layers", root / "docs"
    data = options.data
    if options.quick:
        results = images = options.work / "results"
        data = data or write_stand_in(options.work / "stand-in.npz")
    elif data is None:
        parser.error("--data is missing: give the npz file of QM9, or --quick")
    plan = QUICK if options.quick else Plan()
    if not run(data, options.work, results, plan):
        raise SystemExit("Stopped; the same command goes on from there.")
    print(report(results, images))


if __name__ == "__main__":
    main()
