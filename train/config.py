"""Configuration of a training run: frozen dataclasses, read from TOML that lists differences."""

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lkm_calc import MODELS
from lkm_calc.files import expanded


class ConfigError(ValueError):
    """A configuration cannot be used; the message names the key and the remedy."""


@dataclass(frozen=True)
class DataConfig:
    """Which frames to learn from."""

    train: str = ""
    """Path of the file that training and validation frames are drawn from."""
    test: str = ""
    """Path of a file to measure the final model on; empty for none."""
    format: Literal["auto", "md17", "chignolin", "qm9", "hdf5", "ase"] = "auto"
    """Kind of the files; "auto" tells it from suffix and content."""
    labels: Literal["revised", "original"] = "revised"
    """Of an rMD17 file: the revised labels or the original MD17 ones."""
    target: str = "U0"
    """Of a QM9 file: the property to learn."""
    energy_unit: str = ""
    """Of files that ASE reads, and own npz in the layout of MD17: eV, kcal/mol, kJ/mol, Hartree,
    Ry or meV; empty for the format's own, eV and kcal/mol."""
    length_unit: str = ""
    """Likewise: Å, Bohr or nm; empty for Å."""
    energy_key: str = ""
    """Name of the energies in the files ("dft_energy" for example); empty for the usual ones."""
    forces_key: str = ""
    """Name of the forces, likewise: forces, not gradients."""
    stress_key: str = ""
    """Name of the stress, likewise: 1/V dE/dε in ASE's sign, energy per volume; 3 × 3, nine numbers
    or xx, yy, zz, yz, xz, xy. A virial is then not read unless it is named too."""
    virial_key: str = ""
    """Name of the virial, likewise: −volume × stress, an energy; of the same shapes. The stress is
    then not read unless it is named too."""
    n_train: int | Literal["auto"] = "auto"
    """Number of training frames; "auto" for all that are not validation frames."""
    n_validation: int | Literal["auto"] = "auto"
    """Number of validation frames; "auto" for a tenth of the file, at most 50."""
    check_units: bool = True
    """Refuse energies and forces that are not credible in the units of the format."""

    def sizes(self, n_frames: int) -> tuple[int, int]:
        """Return how many frames of a file of so many structures train and validate."""
        n_train, n_validation = self.n_train, self.n_validation
        tenth = max(1, min(50, n_frames // 10))
        validation = n_validation if isinstance(n_validation, int) else tenth
        return n_train if isinstance(n_train, int) else n_frames - validation, validation


@dataclass(frozen=True)
class ModelConfig:
    """Which architecture to train."""

    name: str = "ace"
    """A key of lkm_calc.MODELS; one of your own after installing its package or with --import."""
    hypers: Mapping[str, Any] = field(default_factory=dict)
    """Its arguments that differ from the defaults, the table [model.hypers]."""


@dataclass(frozen=True)
class LossConfig:
    """What to minimise."""

    kind: Literal["l1", "l2", "huber"] = "l1"
    """Distance between prediction and label."""
    energy_kind: Literal["", "l1", "l2", "huber"] = ""
    """The same for energies alone; empty for that of all terms."""
    forces_kind: Literal["", "l1", "l2", "huber"] = ""
    """The same for forces."""
    stress_kind: Literal["", "l1", "l2", "huber"] = ""
    """The same for stress."""
    huber_delta: float = 0.05
    """Where Huber turns linear, in eV, eV/Å and eV/Å³."""
    energy: float = 0.1
    """Weight of the energy term, eV per structure."""
    energy_per_atom: bool = False
    """Divide energies by the number of atoms first; for sets of very different sizes."""
    forces: float = 1.0
    """Weight of the force term, eV/Å per component."""
    stress: float = 0.0
    """Weight of the stress term, eV/Å³ per component."""
    config_type_weights: Mapping[str, Any] = field(default_factory=dict)
    """Factors on the energy, force and stress terms of frames by their config_type, the table
    [loss.config_type_weights]; "Default" is for all others, 1 if not given."""
    gamma: float | Literal["auto"] = 0.0
    """γ, weight of the LKM term; 0 switches it off. model.hypers.lkm_tap chooses the layers. "auto"
    sets γ in every step so that γ L_KD is the fraction gamma_fraction of the rest of the loss."""
    gamma_fraction: float = 0.1
    """See gamma."""
    gamma_warmup_steps: int = 0
    """Steps over which γ grows linearly from zero."""
    lkm_distance: Literal["mse", "mae"] = "mse"
    """Squared or absolute distance of each layer to its teacher."""
    lkm_teacher: Literal["mean", "deeper", "neighbours", "learned", "error"] = "mean"
    """What each layer is pulled toward: the mean over layers as in the paper, the mean of those
    deeper than it or next to it, a weighted mean of the others with weights that learn, or one of
    all weighted by the inverse error of the energy that the network would have after each."""
    lkm_scale_free: bool = False
    """Divide by the mean square (or size) of the embeddings, so that shrinking gains nothing."""
    raw_energies: bool = False
    """Fit total energies as they are, rounded to float32, without reference energies, in units of
    1 kcal/mol: as some published code does, only to study what that costs."""

    @property
    def mixes(self) -> bool:
        """Whether the layers are mixed at all."""
        return self.gamma == "auto" or self.gamma > 0


@dataclass(frozen=True)
class OptimiserConfig:
    """How to minimise it."""

    epochs: int = 150
    """Passes over the training frames."""
    batch_size: int = 5
    """Frames a step, over all processes."""
    accumulate: int = 1
    """Pieces in which a process computes its part of a batch, one after the other, to save memory;
    the step is the same."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """What follows the warm-up."""
    kind: Literal["adamw", "muon"] = "muon"
    """AdamW for all weights, or Muon for the matrices of linear layers and AdamW for the rest."""
    momentum: float = 0.95
    """Decay a step of Muon's averaged gradient."""
    learning_rate: float = 4e-3
    """Peak learning rate; a half of it is safer for AdamW."""
    final_fraction: float = 1e-3
    """Learning rate at the end of the cosine, or the lowest of the plateaus, over its peak."""
    plateau_factor: float = 0.8
    """Factor on the learning rate after plateau_patience validations without a new best."""
    plateau_patience: int = 20
    """See plateau_factor."""
    early_stopping: int = 0
    """Validations without a new best after which the run ends; 0 for never."""
    warmup_steps: int = 500
    """Steps over which the learning rate grows linearly from zero."""
    restart_epoch: int = 0
    """Epoch after which the schedule starts again with half the learning rate, where a run is
    prolonged (--prolong); 0 for none."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float = 10.0
    """Largest norm of the gradient of all weights; larger ones are scaled down."""
    ema_decay: float = 0.999
    """Decay a step of the averaged weights, which are validated and kept."""
    swa_fraction: float = 0.0
    """Last part of the steps in which the weights are averaged evenly instead (SWA), at a constant
    learning rate; 0 for none."""
    swa_rate: float = 0.05
    """That learning rate over its peak."""


@dataclass(frozen=True)
class RunConfig:
    """Where and how to run."""

    directory: str = "runs/run"
    """Folder for checkpoints, metrics and plots."""
    seed: int = 0
    """Seed of the split, the weights and the order of the frames."""
    finetune: str = ""
    """Model file or bundled model to start from, whose architecture then counts; empty for none."""
    device: str = "auto"
    """"auto" takes CUDA when there is one; else a torch device such as "cpu" or "cuda:1"."""
    dtype: Literal["float32", "float64"] = "float32"
    """Type of the weights and activations."""
    cuda_graphs: bool = False
    """Record the gradients of a batch as a CUDA graph and replay it, where frames are of one
    molecule: less time between small kernels, more memory."""
    compile: bool = False
    """Compile the gradients of a batch for a CPU, where frames are of one molecule: minutes at the
    start, then up to twice the steps a second. Needs a C++ compiler."""
    kernels: Literal["auto", "off"] = "auto"
    """"auto" trains with the kernel in C++ of an architecture that has one for it, on a CPU: many
    times as fast as without, from first derivatives alone."""
    tf32: bool = False
    """Round the factors of matrix products on a GPU to 10 bits: faster, and less exact."""
    validate_every: int = 1
    """Epochs between validations."""
    checkpoint_every: int = 5
    """Epochs between saved training states."""
    eval_batch_size: int = 16
    """Frames a batch in validation and tests."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, which must be installed."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: RunConfig = field(default_factory=RunConfig)


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, or the config.json of a run, and apply ``--section.key value`` pairs.

    Raises:
        ConfigError: The file is missing or not TOML or JSON, a key is unknown, or a value is of the
            wrong type or out of range.
    """
    path = expanded(path)
    kind, parse = ("JSON", json.loads) if path.suffix == ".json" else ("TOML", tomllib.loads)
    try:
        table = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"The configuration {path} does not exist.") from error
    except ValueError as error:  # not UTF-8, or not of its kind
        raise ConfigError(f"{path} is not valid {kind}: {error}.") from error
    return config_from_table(merge(table, parse_overrides(overrides)))


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn ``--section.key value`` pairs into a nested table, values read as TOML or as text."""
    table: dict[str, Any] = {}
    words = [part for word in arguments for part in _split_flag(word)]
    for flag, text in zip(words[::2], [*words[1::2], None], strict=False):
        if not flag.startswith("--") or "." not in flag:
            raise ConfigError(
                f"{flag!r} is not an option. Write --section.key value, for example "
                "--optimiser.epochs 10."
            )
        if text is None:
            raise ConfigError(f"{flag} has no value.")
        value = _toml_value(text)
        for name in reversed(flag[2:].split(".")):
            value = {name: value}
        table = merge(table, value)
    return table


def told_of_old(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a file tells a run had, those that came later included.

    These had their defaults, but for the optimiser, which was AdamW before there was a choice.
    """
    return merge(to_table(Config()), merge({"optimiser": {"kind": "adamw"}}, table))


def _toml_value(text: str) -> Any:
    """Return what TOML makes of a word, or the word: also of dates, which no option takes."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, str | bool | int | float | list | dict) else text


def _split_flag(word: str) -> list[str]:
    """Return ``--key=value`` as two words, any other word as it is."""
    return word.split("=", 1) if word.startswith("--") and "=" in word else [word]


def merge(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested table with the overrides laid over it."""
    merged = dict(table)
    for key, value in overrides.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = merge(below, value)
        merged[key] = value
    return merged


def config_from_table(table: Mapping[str, Any]) -> Config:
    """Build a checked configuration from nested tables.

    Raises:
        ConfigError: As for :func:`read_config`.
    """
    config: Config = _build(Config, table, "")
    _check(config)
    return config


def to_table(config: Config) -> dict[str, Any]:
    """Return a configuration as nested tables of plain values, every key present."""
    return dataclasses.asdict(config)


def _build(cls: type, table: Mapping[str, Any], prefix: str) -> Any:
    """Build a dataclass from a table, recursively, refusing unknown keys and wrong types."""
    kinds = get_type_hints(cls)
    values = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1)
            hint = f" Did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigError(
                f"Unknown configuration key {name}.{hint} Known: "
                f"{', '.join(prefix + k for k in kinds)}."
            )
        kind = kinds[key]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name} must be a table, [{name}]; got {value!r}.")
            values[key] = _build(kind, value, f"{name}.")  # type: ignore[arg-type]
        else:
            values[key] = _convert(kind, value, name)
    return cls(**values)


def _convert(kind: Any, value: Any, name: str) -> Any:
    """Return a value as the type of its field, or raise a ConfigError."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{name} is {value!r}; choose one of {list(get_args(kind))}.")
        return value
    if get_origin(kind) is Union:  # a number or a word
        *numbers, words = get_args(kind)
        if isinstance(value, str):
            return _convert(words, value, name)
        kind = numbers[0]
    if get_origin(kind) is Mapping:
        kind = Mapping
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int to Python, not to the reader of a configuration.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name} is {value!r}; it must be of type {kind.__name__}.")
    return value


def _check_type_weights(weights: Mapping[str, Any]) -> None:
    """Raise a ConfigError for weights that are no numbers, negative or not finite."""
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight < math.inf:
            raise ConfigError(
                f"loss.config_type_weights.{name} is {weight!r}; it must be a number, finite and "
                "not negative."
            )


def _check(config: Config) -> None:
    """Raise a ConfigError for values that no run can use."""
    _check_type_weights(config.loss.config_type_weights)
    o, run = config.optimiser, config.run
    positive = {
        "data.n_train": 1 if config.data.n_train == "auto" else config.data.n_train,
        "data.n_validation": 1 if config.data.n_validation == "auto" else config.data.n_validation,
        "optimiser.epochs": o.epochs,
        "optimiser.batch_size": o.batch_size,
        "optimiser.accumulate": o.accumulate,
        "optimiser.plateau_patience": o.plateau_patience,
        "optimiser.swa_rate": o.swa_rate,
        "optimiser.learning_rate": o.learning_rate,
        "optimiser.clip_norm": o.clip_norm,
        "loss.huber_delta": config.loss.huber_delta,
        "run.validate_every": run.validate_every,
        "run.checkpoint_every": run.checkpoint_every,
        "run.eval_batch_size": run.eval_batch_size,
    }
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}; it must be positive and finite.")
    not_negative = {
        "loss.energy": config.loss.energy,
        "loss.forces": config.loss.forces,
        "loss.stress": config.loss.stress,
        "loss.gamma": 0.0 if config.loss.gamma == "auto" else config.loss.gamma,
        "loss.gamma_fraction": config.loss.gamma_fraction,
        "loss.gamma_warmup_steps": config.loss.gamma_warmup_steps,
        "optimiser.early_stopping": o.early_stopping,
        "optimiser.final_fraction": o.final_fraction,
        "optimiser.restart_epoch": o.restart_epoch,
        "optimiser.warmup_steps": o.warmup_steps,
        "optimiser.weight_decay": o.weight_decay,
        "run.seed": run.seed,
    }
    for name, value in not_negative.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} is {value}; it must be finite and not negative.")
    for name in ("ema_decay", "swa_fraction", "momentum"):
        if not 0 <= getattr(o, name) < 1:
            raise ConfigError(f"optimiser.{name} is {getattr(o, name)}; it must be in [0, 1).")
    if not 0 < o.plateau_factor < 1:
        raise ConfigError(
            f"optimiser.plateau_factor is {o.plateau_factor}; it must be between 0 and 1."
        )
    if o.restart_epoch >= o.epochs:
        raise ConfigError(
            f"optimiser.restart_epoch is {o.restart_epoch}; it must be less than optimiser.epochs, "
            f"which is {o.epochs}."
        )
    if o.restart_epoch and o.swa_fraction:
        raise ConfigError(
            "optimiser.restart_epoch and optimiser.swa_fraction cannot be combined: set one to 0."
        )
    if config.loss.raw_energies and config.run.finetune:
        raise ConfigError(
            "loss.raw_energies starts without reference energies, which a model to finetune has. "
            "Leave out one of the two."
        )
    if config.loss.energy == config.loss.forces == config.loss.stress == 0:
        raise ConfigError(
            "loss.energy, loss.forces and loss.stress are all 0: there is nothing to learn."
        )
    if config.loss.lkm_teacher == "error" and config.loss.energy == 0:
        raise ConfigError(
            'loss.lkm_teacher is "error" and loss.energy 0: layers cannot be judged by energies '
            "that are not fitted. Give loss.energy a weight, or choose another teacher."
        )
    if not config.data.train:
        raise ConfigError("data.train is missing: name the file with the training frames.")
    if config.model.name not in MODELS:
        raise ConfigError(
            f"model.name is {config.model.name!r}; choose one of {', '.join(MODELS)}. For one of "
            "your own install its package, or give its module with --import."
        )
