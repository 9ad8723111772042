"""Output files of a run: configuration, metrics, models, plots."""

import datetime
import importlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lkm_calc import load_model, save_model
from lkm_calc.files import expanded, replacing
from lkm_calc.page import PageError
from lkm_calc.potential import read_header
from lkm_calc.runtime import package_version

from ..config import Config, ConfigError, DataConfig, to_table
from ..data import GraphFrames, IsolatedAtoms, Split, atom_errors
from ..report import (
    Errors,
    Held,
    Measured,
    Run,
    checksum,
    errors_of,
    model_card,
    plot_learning_curves,
    plot_parity,
    predict,
    read_rows,
    repeat_command,
    write_json,
    write_run_page,
    write_text,
)
from ..state import TrainingState

logger = logging.getLogger("lkm_train")


class Record:
    """The folder of a run and its files.

    Args:
        config: The run.
        isolated: The isolated atoms of the training file.
        start: Model of the first stage, if there was one.
    """

    def __init__(
        self,
        config: Config,
        isolated: IsolatedAtoms | None = None,
        start: Path | None = None,
    ) -> None:
        self.config, self.start = config, start
        self.isolated = isolated or IsolatedAtoms({}, 0)
        self.tested = IsolatedAtoms({}, 0)
        """The isolated atoms of the test file."""
        self.directory = expanded(config.run.directory)
        self.metrics = self.directory / "metrics.jsonl"
        self.state = self.directory / "state.pt"
        self.best = self.directory / "model.safetensors"
        self.last = self.directory / "last.safetensors"
        self.page = self.directory / "report.html"
        self.tensorboard: Any = None
        self.labels: dict[str, dict[str, int]] = {}
        """Numbers of frames with each label, in the training and the validation set."""
        # Computed when the files are read, because they may be moved or changed during the run.
        self.files = {
            name: {"name": Path(path).name, "sha256": checksum(path)}
            for name, path in data_files(config.data).items()
        }

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that must be unchanged for a run to be continued.

        Training data are identified by their checksum. Paths, device and the like may change.
        """
        table = to_table(self.config)
        for key in ("test", "n_test"):
            del table["data"][key]
        for name in self.files.keys() - {"test"}:
            table["data"][name] = f"SHA-256 {self.files[name]['sha256']}"
        if self.isolated.n_frames:  # older versions treated them like all other frames
            table["data"]["isolated_atoms"] = self.isolated.by_symbol()
        for key in ("directory", "device", "eval_batch_size", "checkpoint_every", "tensorboard"):
            del table["run"][key]
        return table

    def begin(self, split: Split, step: int) -> None:
        """Write configuration and split, and remove metrics of steps that will be repeated."""
        if self.config.run.tensorboard:
            self.tensorboard = _tensorboard(self.directory, step)
        write_json(self.directory / "config.json", to_table(self.config))
        with replacing(self.directory / "split.npz") as temporary:
            np.savez(temporary, train=split.train, validation=split.validation, test=split.test)
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.tensorboard is not None:
            for name, value in row.items():
                self.tensorboard.add_scalar(name.replace("_", "/", 1), value, row["step"])
            self.tensorboard.flush()

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows so far, without a last line that was truncated by a crash."""
        return read_rows(self.metrics)

    def provenance(
        self, state: TrainingState, data: GraphFrames, validation: Errors
    ) -> dict[str, Any]:
        """Return the description of the training for the model file, as JSON values."""
        table = to_table(self.config)
        # Paths are private and are not stored, only file names and checksums.
        table["data"] |= dict.fromkeys(data_files(self.config.data), "")
        table["run"] |= {"directory": "", "finetune": Path(self.config.run.finetune).name}
        table["pretraining"]["calculator"] = Path(self.config.pretraining.calculator).name
        more: dict[str, Any] = {}
        if self.isolated.n_frames:
            energies = self.isolated.by_symbol()
            more["isolated_atoms"] = {"frames": self.isolated.n_frames, "energies": energies}
        if self.start:
            first = read_header(self.start)["provenance"]
            more["pretraining_seconds"] = first["training_seconds"]
        return more | {
            "date": datetime.date.today().isoformat(),
            "version": package_version(),
            "torch": torch.__version__,
            "device": device_name(data.device),
            "energy_unit": data.energy_unit,
            "step": state.step,
            "training_seconds": round(state.counters.seconds, 1),
            "files": self.files,
            "labels": self.labels,
            "config": table,
            "validation_errors": validation.figures(),
        }

    def finish(self, state: TrainingState, validation: GraphFrames, held: Held) -> None:
        """Evaluate the best model; write both models with their errors, the card and the plots.

        Args:
            state: The finished training.
            validation: The validation frames.
            held: The test frames, or the validation frames if there are no test frames.
        """
        size, device = self.config.run.eval_batch_size, validation.device
        last_errors = errors_of(predict(state.averaged_model, validation, size))
        save_model(state.averaged_model, self.last, self.provenance(state, validation, last_errors))

        model = load_model(self.best, device=device)
        tested = held.name == "test"
        measured = GraphFrames(held.frames, model, device) if tested else validation
        predictions = predict(model, measured, size)
        errors = errors_of(predictions)
        # Test frames may have been requested after the best model was saved.
        config = model.provenance["config"]
        data = config["data"] | {"n_test": self.config.data.n_test}
        provenance = model.provenance | {
            "files": self.files,
            "config": config | {"data": data},
            f"{held.name}_errors": errors.figures(),
        }
        if tested and self.tested.energies:
            provenance["test_isolated_atoms"] = atom_errors(model, self.tested.energies)
        provenance["training_seconds"] = round(state.counters.seconds, 1)
        save_model(model, self.best, provenance)

        write_json(self.directory / "result.json", provenance)
        header = read_header(self.best)
        card = model_card(header, self.directory.name, repeat_command(provenance), "parity.png")
        write_text(self.directory / "card.md", card)
        rows = self.read_metrics()
        plot_learning_curves(rows, self.directory / "learning_curves.png")
        plot_parity(predictions, errors, f"{held.name} frames", self.directory / "parity.png")
        run = Run(directory=self.directory, config=self.config, rows=rows, header=header)
        try:
            write_run_page(run, Measured(model, held, measured, predictions, size), self.page)
        except PageError as error:
            logger.info("%s is not written. %s", self.page.name, error)


def data_files(options: DataConfig) -> dict[str, str]:
    """Return the paths of the data files by option."""
    names = ("train", "validation", "test")
    return {name: path for name in names if (path := getattr(options, name))}


def _tensorboard(directory: Path, step: int) -> Any:
    """Return a TensorBoard writer, or raise a ConfigError if TensorBoard is not installed."""
    try:  # optional, and slow to import
        module = importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise ConfigError(
            "run.tensorboard is true, but TensorBoard is not installed: pip install tensorboard."
        ) from error
    return module.SummaryWriter(directory / "tensorboard", purge_step=step + 1)


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or "cpu" with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} thread(s)"
