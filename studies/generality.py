"""Does LKM improve other models? GCN, GAT and GIN of torch-geometric on bond graphs of QM9.

The models and their training are those of ``md_examples/lkm_in_torch_geometric.py``. Each seed has
different molecules and initial weights; the arms of a seed differ only in γ, so that their errors
are compared in pairs.

    python -m studies.generality --data qm9_130831.npz

Arms with existing results are not run again. With --quick every arm runs only a few steps; --data
is then optional, with a few dozen small molecules with made-up properties instead of QM9.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.collections import g2
from ase.data import covalent_radii
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import t as student
from torch_geometric.data import Data

from lkm_calc.files import replacing
from md_examples.lkm_in_torch_geometric import (
    BACKBONES,
    ELEMENTS,
    PropertyModel,
    evaluate,
    fit,
    read_graphs,
    scale_of,
)
from train.formats import TARGETS
from train.report import write_json

from .tables import mean_and_error, table, written

COMMAND = "python -m studies.generality --data qm9_130831.npz"
IMAGE = "study-generality.png"


@dataclass(frozen=True)
class Plan:
    """How large the study is."""

    n_train: int = 5000
    n_validation: int = 500
    n_test: int = 2000
    epochs: int = 12
    targets: tuple[str, ...] = ("gap",)
    gammas: tuple[float, ...] = (0.0, 0.01, 0.1, 1.0, 10.0)
    seeds: tuple[int, ...] = (1, 2, 3)

    @property
    def n_molecules(self) -> int:
        """Of a seed, in all."""
        return self.n_train + self.n_validation + self.n_test


QUICK = Plan(n_train=40, n_validation=10, n_test=20, epochs=2)


@dataclass(frozen=True)
class Arm:
    """One training."""

    target: str
    backbone: str
    gamma: float
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its result."""
        return f"{self.target}-{self.backbone.lower()}-gamma-{self.gamma:g}-seed-{self.seed}"


def arms(plan: Plan) -> Iterator[Arm]:
    """Yield all arms, seed after seed."""
    product = itertools.product(plan.targets, plan.seeds, BACKBONES, plan.gammas)
    for target, seed, backbone, gamma in product:
        yield Arm(target, backbone, gamma, seed)


def configuration(arm: Arm, plan: Plan) -> dict[str, Any]:
    """Return what the figures of an arm depend on, as JSON values."""
    sizes = {name: getattr(plan, name) for name in ("n_train", "n_validation", "n_test", "epochs")}
    return {**asdict(arm), **sizes}


def train_arm(arm: Arm, plan: Plan, graphs: Sequence[Data]) -> dict[str, float]:
    """Train a model on the first molecules and return its errors on the others.

    Returns:
        ``validation_mae`` and ``test_mae`` in the unit of the target, and on the test molecules
        ``lkm``, which is L_KD, and ``cosine``, the mean over pairs of layers.
    """
    train = graphs[: plan.n_train]
    validation = graphs[plan.n_train : plan.n_train + plan.n_validation]
    test = graphs[plan.n_train + plan.n_validation :]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arm.seed)
        model = PropertyModel(arm.backbone, arm.target)
    fit(model, train, arm.gamma, plan.epochs, arm.seed)
    chosen_by, found = (evaluate(model, part, scale_of(train)) for part in (validation, test))
    figures = {
        "validation_mae": chosen_by.mae,
        "test_mae": found.mae,
        "lkm": found.lkm,
        "cosine": found.cosine,
    }
    return {name: float(f"{value:.5g}") for name, value in figures.items()}


def run(data: Path, results: Path, plan: Plan) -> None:
    """Run the arms whose results are not there."""

    def molecules(arm: Arm) -> tuple[str, int]:
        return arm.target, arm.seed

    missing = [arm for arm in arms(plan) if not _is_done(results / f"{arm.name}.json", arm, plan)]
    for (target, seed), same in itertools.groupby(missing, molecules):
        graphs = read_graphs(data, target, plan.n_molecules, seed)
        for arm in same:
            figures = train_arm(arm, plan, graphs)
            path = results / f"{arm.name}.json"
            write_json(path, {"configuration": configuration(arm, plan), **figures})
            print(f"{arm.name}: test MAE {figures['test_mae']:.4g}", flush=True)


def _is_done(path: Path, arm: Arm, plan: Plan) -> bool:
    """Return whether the result is there and of the same configuration."""
    if not path.exists():
        return False
    known = json.loads(path.read_text(encoding="utf-8"))["configuration"]
    return bool(known == configuration(arm, plan))


def write_stand_in(path: Path) -> Path:
    """Write small molecules of ASE to a file like QM9's and return its path.

    Their made-up ``gap`` is the mean covalent radius of their atoms, their ``alpha`` the sum.
    """
    allowed = set(ELEMENTS.tolist())
    molecules = [g2[name] for name in g2.names]
    molecules = [m for m in molecules if len(m) > 1 and set(m.numbers) <= allowed]
    radii = [covalent_radii[m.numbers] for m in molecules]
    np.savez(
        path,
        N=np.array([len(m) for m in molecules]),
        Z=np.concatenate([m.numbers for m in molecules]),
        R=np.concatenate([m.positions for m in molecules]),
        gap=np.array([r.mean() for r in radii]),
        alpha=np.array([r.sum() for r in radii]),
    )
    return path


Row = Mapping[str, Any]
Floats = NDArray[np.float64]


class Sweep:
    """The results of one target and backbone."""

    def __init__(self, target: str, backbone: str, rows: Sequence[Row]) -> None:
        self.target, self.backbone = target, backbone
        self.unit = "meV" if TARGETS[target].unit == "eV" else TARGETS[target].unit
        self.configuration = rows[0]["configuration"]
        """Of any of its arms."""
        found = {(r["configuration"]["gamma"], r["configuration"]["seed"]): r for r in rows}
        self.gammas = sorted({gamma for gamma, _ in found})
        # A seed counts once all its arms are done.
        self.seeds = [
            seed
            for seed in sorted({seed for _, seed in found})
            if all((gamma, seed) in found for gamma in self.gammas)
        ]
        self._found = found

    def of(self, figure: str) -> Floats:
        """Return a figure of all arms, (gammas, seeds); errors of energies in meV."""
        factor = 1000.0 if self.unit == "meV" and figure.endswith("mae") else 1.0
        return np.array(
            [[factor * self._found[g, s][figure] for s in self.seeds] for g in self.gammas]
        )

    @property
    def changes(self) -> Floats:
        """Test error over that without LKM of the same seed, less one, in %, (gammas, seeds)."""
        errors = self.of("test_mae")
        relative: Floats = errors / errors[self.gammas.index(0.0)] - 1
        return 100 * relative

    @property
    def chosen(self) -> tuple[list[float], Floats]:
        """For each seed, γ of least validation error, and what it changes in %."""
        best = self.of("validation_mae").argmin(0)
        return [self.gammas[k] for k in best], self.changes[best, np.arange(len(self.seeds))]


def read_sweeps(results: Path) -> list[Sweep]:
    """Return the results in a folder by target and backbone."""
    rows = [json.loads(path.read_text("utf-8")) for path in sorted(results.glob("*.json"))]

    def key(row: Row) -> tuple[str, int]:
        known = row["configuration"]
        return known["target"], list(BACKBONES).index(known["backbone"])

    return [
        Sweep(target, list(BACKBONES)[k], list(same))
        for (target, k), same in itertools.groupby(sorted(rows, key=key), key)
    ]


def report(results: Path, images: Path) -> str:
    """Return the Markdown of the section on other models and draw its picture.

    Args:
        results: Folder of the arms' JSON files.
        images: Folder for the picture.
    """
    sweeps = read_sweeps(results)
    plan = sweeps[0].configuration
    draw(sweeps, images / IMAGE)
    return "\n\n".join(
        (
            "## Other models: GCN, GAT and GIN",
            f"torch-geometric's models with four layers on bond graphs of QM9 (no distances), "
            f"{plan['n_train']} molecules, {plan['epochs']} epochs; test MAE on {plan['n_test']} "
            f"molecules, {len(sweeps[0].seeds)} seeds, change in % (`{COMMAND}`; code to copy: "
            "`md_examples/lkm_in_torch_geometric.py`).",
            _table(sweeps),
            _verdict(sweeps),
            f"![Change of the error and cosine between layers by γ]({IMAGE})",
        )
    )


def _table(sweeps: Sequence[Sweep]) -> str:
    """Return a table with a row per model: the error without LKM and its change by each γ."""
    rows = []
    for sweep in sweeps:
        mixed = np.array(sweep.gammas) > 0
        mae = mean_and_error(sweep.of("test_mae")[~mixed][0])
        changes = [mean_and_error(one) for one in sweep.changes[mixed]]
        rows.append(
            [
                f"{sweep.backbone}, {sweep.target}",
                f"{written(*mae, 1)} {sweep.unit}",
                *(written(*change, 1, "+") for change in changes),
            ]
        )
    gammas = [f"γ = {gamma:g}" for gamma in sweeps[0].gammas if gamma]
    text: str = table(["", "γ = 0", *gammas], rows)
    return text


def _verdict(sweeps: Sequence[Sweep]) -> str:
    """Return how many changes are significant, and the gain if γ is selected on validation data."""
    lower, higher, count = 0, 0, 0
    chosen = []
    for sweep in sweeps:
        change, error = mean_and_error(sweep.changes[np.array(sweep.gammas) > 0].T)
        reach = student.ppf(0.975, len(sweep.seeds) - 1) * error
        lower += int((change < -reach).sum())
        higher += int((change > reach).sum())
        count += len(change)
        gammas, changes = sweep.chosen
        mean, spread = mean_and_error(changes)
        named = ", ".join(f"{gamma:g}" for gamma in gammas)
        chosen.append(
            f"{mean:+.1f} ± {spread:.1f} % for {sweep.backbone}, {sweep.target} (γ = {named})"
        )
    return (
        f"Of {count} changes, {lower} are significantly below zero and {higher} above. With γ "
        f"(including 0) selected for each seed by validation error, the test error changes by "
        f"{'; '.join(chosen)}."
    )


def draw(sweeps: Sequence[Sweep], path: Path) -> None:
    """Draw the change of the test error, L_KD and the cosine between layers over γ."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    change, lkm, cosine = figure.subplots(1, 3)
    for k, sweep in enumerate(sweeps):
        label = f"{sweep.backbone}, {sweep.target}"
        shift = 0.12 * (k - (len(sweeps) - 1) / 2)
        _over_gamma(change, sweep, sweep.changes, label, shift)
        places = np.arange(len(sweep.gammas)) + shift
        for place, values in zip(places, sweep.changes, strict=True):
            change.scatter([place] * len(values), values, s=8, alpha=0.4, color=f"C{k}")
        _over_gamma(lkm, sweep, sweep.of("lkm"), label)
        _over_gamma(cosine, sweep, sweep.of("cosine"), label)
    change.axhline(0, color="0.6", linewidth=1, zorder=0)
    # Large γ change much, small ones little: linear within 2 %, logarithmic beyond.
    change.set_yscale("symlog", linthresh=2)
    ticks = (-5, -2, -1, 0, 1, 2, 5, 10, 20)
    change.set_yticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    change.set(title="Change of the test MAE by LKM, %")
    lkm.set(title="$L_{KD}$", yscale="log")
    cosine.set(title="Cosine between layers", ylim=(0, 1.02))
    change.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=140)


def _over_gamma(axes: Axes, sweep: Sweep, values: Floats, label: str, shift: float = 0.0) -> None:
    """Draw mean and standard error of (gammas, seeds), the γ evenly apart."""
    places = np.arange(len(sweep.gammas))
    axes.errorbar(
        places + shift, *mean_and_error(values.T), marker="o", markersize=4, capsize=3, label=label
    )
    axes.set_xticks(places, [f"{gamma:g}" for gamma in sweep.gammas])
    axes.set_xlabel("γ")
    axes.grid(alpha=0.25)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and draw its picture."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.generality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="QM9 as train/formats/qm9.py packs it")
    parser.add_argument("--work", type=Path, default=Path("runs/generality"), help="for --quick")
    parser.add_argument("--quick", action="store_true", help="a few steps, results into --work")
    options = parser.parse_args(arguments)
    root = Path(__file__).parents[1]
    results, images, plan = root / "studies" / "results" / "generality", root / "docs", Plan()
    if options.quick:
        results, images, plan = options.work, options.work, QUICK
        options.work.mkdir(parents=True, exist_ok=True)
    elif options.data is None:
        parser.error("--data is missing: give the npz file of QM9, or --quick")
    run(options.data or write_stand_in(options.work / "stand-in.npz"), results, plan)
    print(report(results, images))


if __name__ == "__main__":
    main()
