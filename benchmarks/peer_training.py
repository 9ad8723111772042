"""Force errors against the training time of other packages, each trained by its own command.

    python -m benchmarks.peer_training MACE --bin mace-env/bin --minutes 20 \
        --train rmd17_ethanol_train_01.npz --test rmd17_ethanol_test_01.npz --output ethanol.json
    python -m benchmarks.peer_training lkm-calc --minutes 20 --arguments "--pretrain gfn2-xtb" \
        --train rmd17_ethanol_train_01.npz --test rmd17_ethanol_test_01.npz --output ethanol.json
    python -m benchmarks.peer_training --plot training_cost.png ethanol.json aspirin.json

Each package is trained for ``--minutes`` on one core, on the same 950 training and 50 validation
frames, or on the first ``--n-train`` of them. The time is that of training and validation;
start-up, compilation and the test are not counted. The settings, see :func:`mace`,
:func:`nequip`, :func:`schnetpack` and :func:`lkm`, are close to those in the documentation of
each package. ``--bin`` is the folder of its commands: mace-torch and nequip cannot share an
environment. Tested with mace-torch 0.3.16, nequip 0.19.1 and schnetpack 2.1.1. A plot draws the
mean over repeated runs.
"""

import argparse
import itertools
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import ase.db
import numpy as np
from ase.io import read, write
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from numpy.typing import NDArray

from train.data import Frames
from train.formats import read_frames

VALIDATION = 50
"""Number of validation frames, the last of the training file."""
MEV = 1000.0
"""meV in an eV."""


class Task(NamedTuple):
    """What to train on, and for how long."""

    train: Frames
    validation: Frames
    test: Frames
    minutes: float
    seed: int
    folder: Path
    commands: Path | None
    arguments: list[str]
    """Further arguments of the command that trains."""

    def call(self, command: str, *arguments: str) -> str:
        """Run a command of the package on one core and return what it printed."""
        path = str(self.commands.resolve() / command) if self.commands else command
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # its own checkpoint: schnetpack
        }
        done = subprocess.run(
            [path, *arguments],
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        (self.folder / f"{command}.log").write_text(done.stdout, encoding="utf-8")
        if done.returncode:
            raise SystemExit(f"{path} failed:\n{done.stdout[-2000:]}")
        return done.stdout


def errors(
    energies: NDArray[np.float64], forces: NDArray[np.float64], test: Frames
) -> dict[str, float]:
    """Return errors in meV and meV/Å of energies in eV and forces in eV/Å."""
    assert test.forces is not None
    wrong = (forces - test.forces) * MEV
    return {
        "force_mae": float(np.abs(wrong).mean()),
        "force_rmse": float(np.sqrt((wrong**2).mean())),
        "energy_mae": float(np.abs(energies - test.energies).mean() * MEV),
    }


def forces_of(frames: Frames, frame: int) -> NDArray[np.float64]:
    """Return the forces of a frame, (atoms, 3)."""
    assert frames.forces is not None
    return frames.forces[frames.starts[frame] : frames.starts[frame + 1]]


def max_time(minutes: float) -> str:
    """Return a time limit as Lightning has it: days, hours, minutes and seconds."""
    seconds = round(minutes * 60)
    return f"00:{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def write_xyz(frames: Frames, path: Path) -> None:
    """Write energies and forces under names that ASE does not take for results."""
    images = []
    for frame in range(len(frames)):
        atoms = frames.atoms(frame)
        atoms.info["REF_energy"] = float(frames.energies[frame])
        atoms.arrays["REF_forces"] = forces_of(frames, frame)
        images.append(atoms)
    write(path, images, format="extxyz")


def write_splits(task: Task) -> None:
    """Write the three sets."""
    for name, frames in zip(("train", "validation", "test"), task[:3], strict=True):
        write_xyz(frames, task.folder / f"{name}.xyz")


def read_results(path: Path, energy: str, forces: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return energies and forces that a package wrote under its names."""
    images = read(path, ":")
    return (
        np.array([image.info[energy] for image in images]),
        np.concatenate([image.arrays[forces] for image in images]),
    )


def mace(task: Task) -> dict[str, float]:
    """Train MACE, 64x0e + 64x1o, in float32, batches of 5; the rest as in its README.

    There it has 128 channels, float64 and batches of 10, which would make fewer steps in the time.
    Its second stage, with a larger weight of the energy, starts after three quarters of the epochs,
    its default. Their number follows from the time of two epochs after a first one.
    """
    write_splits(task)

    def train(name: str, epochs: int) -> str:
        return task.call(
            "mace_run_train",
            f"--name={name}",
            f"--seed={task.seed}",
            "--train_file=train.xyz",
            "--valid_file=validation.xyz",
            "--energy_key=REF_energy",
            "--forces_key=REF_forces",
            "--E0s=average",
            "--model=MACE",
            "--hidden_irreps=64x0e + 64x1o",
            "--r_max=5.0",
            "--batch_size=5",
            "--valid_batch_size=50",
            "--default_dtype=float32",
            f"--max_num_epochs={epochs}",
            "--swa",
            f"--start_swa={epochs * 3 // 4}",
            "--ema",
            "--ema_decay=0.99",
            "--amsgrad",
            "--device=cpu",
            *task.arguments,
        )

    found = re.findall(r"^(\S+ \S+) INFO: Epoch \d+:", train("timing", 3), re.MULTILINE)
    times = [datetime.fromisoformat(text.replace(",", ".")) for text in found]
    per_epoch = (times[-1] - times[0]).total_seconds() / (len(times) - 1)
    train("model", max(4, round(task.minutes * 60 / per_epoch)))
    models = [task.folder / name for name in ("model_stagetwo.model", "model.model")]
    model = next(path for path in models if path.exists())
    task.call(
        "mace_eval_configs",
        *("--configs=test.xyz", f"--model={model.name}", "--output=predicted.xyz"),
        *("--device=cpu", "--default_dtype=float32", "--batch_size=50"),
    )
    found_results = read_results(task.folder / "predicted.xyz", "MACE_energy", "MACE_forces")
    return errors(*found_results, task.test)


def nequip(task: Task) -> dict[str, float]:
    """Train NequIP with the settings of its tutorial, see ``nequip.yaml`` beside this file.

    Left out are the ZBL potential, early stopping and ``compile_mode``, which is for GPUs there.
    """
    write_splits(task)
    symbols = sorted(set(task.train.atoms(0).get_chemical_symbols()))
    task.call(
        "nequip-train",
        f"--config-path={Path(__file__).resolve().parent}",
        "--config-name=nequip",
        f"hydra.run.dir={task.folder.resolve()}",
        f"names=[{','.join(symbols)}]",
        f"seed={task.seed}",
        f"trainer.max_time='{max_time(task.minutes)}'",
        *task.arguments,
    )
    path = next(task.folder.glob("predicted*.xyz"))
    images = read(path, ":")
    return errors(
        np.array([image.get_potential_energy() for image in images]),
        np.concatenate([image.get_forces() for image in images]),
        task.test,
    )


def schnetpack(task: Task) -> dict[str, float]:
    """Train PaiNN with SchNetPack's experiment ``md17``, without its early stopping.

    Its scheduler is replaced by that of torch of which it is a copy, because it fails with the
    torch of today. schnetpack 2.1.1 also imports ``T_co`` from torch.utils.data.dataloader, which
    must be corrected by hand.
    """
    splits: dict[str, NDArray[np.int64]] = {}
    frame = 0
    with ase.db.connect(task.folder / "frames.db") as database:
        for name, frames in zip(("train", "val", "test"), task[:3], strict=True):
            splits[f"{name}_idx"] = np.arange(frame, frame + len(frames))
            frame += len(frames)
            for k in range(len(frames)):
                values = {"energy": frames.energies[[k]], "forces": forces_of(frames, k)}
                database.write(frames.atoms(k), data=values)
        database.metadata = {
            "_property_unit_dict": {"energy": "eV", "forces": "eV/Ang"},
            "_distance_unit": "Ang",
            "atomrefs": {},
        }
    np.savez(task.folder / "split.npz", **splits)  # type: ignore[arg-type]
    task.call(
        "spktrain",
        "experiment=md17",
        "data=custom",
        "data.datapath=${hydra:runtime.cwd}/frames.db",
        "+data.split_file=${hydra:runtime.cwd}/split.npz",
        "data.distance_unit=Ang",
        "data.property_units={energy:eV,forces:eV/Ang}",
        f"data.num_train={len(task.train)}",
        f"data.num_val={len(task.validation)}",
        f"data.num_test={len(task.test)}",
        "data.num_workers=0",
        "run.id=model",
        "run.experiment=md17",
        "logger=csv",
        "trainer.accelerator=cpu",
        f"+trainer.max_time='{max_time(task.minutes)}'",
        "callbacks.early_stopping.patience=100000",
        "task.scheduler_cls=torch.optim.lr_scheduler.ReduceLROnPlateau",
        "~task.scheduler_args.smoothing_factor",
        f"+seed={task.seed}",
        *task.arguments,
    )
    logs = sorted(task.folder.glob("**/metrics.csv"))
    names, *rows = [line.split(",") for line in logs[-1].read_text().splitlines()]
    last = dict(zip(names, rows[-1], strict=True))
    return {
        ours: float(last[f"test_{theirs}"]) * MEV
        for ours, theirs in (
            ("force_mae", "forces_mae"),
            ("force_rmse", "forces_rmse"),
            ("energy_mae", "energy_mae"),
        )
    }


def lkm(task: Task) -> dict[str, float]:
    """Train ACE of this package with its defaults."""
    write_splits(task)
    task.call(
        "lkm-train",
        *("fit", "rmd17", "--data.train", "train.xyz", "--data.validation", "validation.xyz"),
        *("--data.test", "test.xyz", "--data.n_train", str(len(task.train))),
        *("--data.energy_key", "REF_energy", "--data.forces_key", "REF_forces"),
        *("--run.seed", str(task.seed), "--run.directory", "run", "--time", f"{task.minutes}m"),
        *task.arguments,
    )
    found = json.loads((task.folder / "run/result.json").read_text(encoding="utf-8"))
    return {name: found["test_errors"][name] for name in ("force_mae", "force_rmse", "energy_mae")}


PACKAGES: dict[str, Callable[[Task], dict[str, float]]] = {
    "lkm-calc": lkm,
    "MACE": mace,
    "NequIP": nequip,
    "PaiNN (SchNetPack)": schnetpack,
}
"""What trains a package, by its name in figures."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train and return what was trained, for how long, and the errors."""
    frames = read_frames(options.train)
    first = len(frames) - VALIDATION
    n_train = options.n_train or first
    if not 0 < n_train <= first:
        raise SystemExit(f"--n-train is {n_train}; it must be from 1 to {first}.")
    name = re.sub(r"\W+", "-", options.name or options.package)
    folder = (
        options.work / f"{options.train.stem}-{name}-{options.minutes:g}-{n_train}-{options.seed}"
    )
    if folder.exists():
        raise SystemExit(f"{folder} exists. Delete it to train again.")
    folder.mkdir(parents=True)
    task = Task(
        frames.select(np.arange(n_train)),
        frames.select(np.arange(first, len(frames))),
        read_frames(options.test),
        *(options.minutes, options.seed, folder, options.bin),
        shlex.split(options.arguments),
    )
    found = PACKAGES[options.package](task)
    return {
        "package": options.name or options.package,
        "frames": options.train.stem,
        "n_train": n_train,
        "minutes": options.minutes,
        "seed": options.seed,
        **found,
    }


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Draw force errors against minutes, one panel per training file and number of frames."""
    kinds = sorted({(row["frames"], row["n_train"]) for row in results}, key=lambda k: (-k[1], k))
    names = list(dict.fromkeys(row["package"] for row in results))
    figure = Figure(figsize=(3.6 * len(kinds), 3.6), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for name, marker in zip(names, itertools.cycle("osD^v<>"), strict=False):
            rows = [
                r for r in results if (r["frames"], r["n_train"], r["package"]) == (*kind, name)
            ]
            minutes = sorted({row["minutes"] for row in rows})
            means = [np.mean([r["force_mae"] for r in rows if r["minutes"] == m]) for m in minutes]
            axes.plot(minutes, means, f"{marker}-", label=name)
        axes.set(xscale="log", yscale="log", xlabel="training time on one core, minutes")
        axes.set_title(f"{kind[0]}, {kind[1]} frames")
        axes.set_xticks(sorted({row["minutes"] for row in results}))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("force MAE on test frames, meV/Å")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train and print, or plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("package", nargs="*", help=f"{', '.join(PACKAGES)}, or files to plot")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--bin", type=Path, metavar="FOLDER", help="of the package's commands")
    parser.add_argument("--arguments", default="", help="further arguments of its command")
    parser.add_argument("--name", help="of the package and its arguments, for tables and figures")
    parser.add_argument("--train", type=Path, help="950 training and 50 validation frames")
    parser.add_argument("--test", type=Path, help="test frames")
    parser.add_argument("--n-train", type=int, help="number of training frames; default all")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/peer-training"))
    parser.add_argument("--output", type=Path, help="JSON file, to which the errors are added")
    options = parser.parse_args()
    if options.plot:
        files = [Path(name) for name in options.package]
        plot([row for file in files for row in json.loads(file.read_text())], options.plot)
        return
    if len(options.package) != 1 or options.package[0] not in PACKAGES:
        parser.error(f"name one of {', '.join(PACKAGES)}")
    if not (options.train and options.test):
        parser.error("--train and --test are needed")
    options.package = options.package[0]
    row = measure(options)
    print(json.dumps(row, indent=1))
    if options.output:
        rows = json.loads(options.output.read_text()) if options.output.exists() else []
        options.output.write_text(json.dumps([*rows, row], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
