"""Configuration of a training run: frozen dataclasses, read from TOML."""

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
    """The configuration is invalid; the message names the option and the remedy."""


FINETUNING_RATE = 1e-3
"""Default learning rate of a run that starts from a model."""
FEWEST_FRAMES = 20
"""Minimum number of frames for pretraining, validation frames among them."""


@dataclass(frozen=True)
class DataConfig:
    """Data set and training/validation split."""

    train: str = ""
    """File with the training frames, and the validation frames if they have no file."""
    validation: str = ""
    """File with the validation frames; empty to draw them from the training file."""
    test: str = ""
    """File with test frames for the final model; empty for none."""
    format: Literal["auto", "md17", "chignolin", "qm9", "hdf5", "ase"] = "auto"
    """Format of the files; "auto" detects it from suffix and content."""
    labels: Literal["revised", "original"] = "revised"
    """For rMD17 files: the revised or the original MD17 labels."""
    target: str = "U0"
    """For QM9 files: the property to learn."""
    energy_unit: str = ""
    """For files read by ASE and npz files in MD17 layout: eV, kcal/mol, kJ/mol, Hartree, Ry or meV;
    empty for the default, eV and kcal/mol respectively."""
    length_unit: str = ""
    """For the same files: Å, Bohr or nm; empty for Å."""
    energy_key: str = ""
    """Name of the energies in the files, for example "dft_energy"; empty for the usual names."""
    forces_key: str = ""
    """Name of the forces (not gradients) in the files; empty for the usual names."""
    stress_key: str = ""
    """Name of the stress in the files, 1/V dE/dε with ASE's sign, in energy per volume: 3 × 3, nine
    numbers or xx, yy, zz, yz, xz, xy. A virial is then ignored unless it is named too."""
    virial_key: str = ""
    """Name of the virial in the files, −volume × stress, an energy, with the same shapes. A stress
    is then ignored unless it is named too."""
    n_train: int | Literal["auto"] = "auto"
    """Number of training frames; "auto" for all that are not validation frames."""
    n_validation: int | Literal["auto"] = "auto"
    """Number of validation frames; "auto" for a tenth of the file, at most 50, or for all of
    data.validation."""
    check_units: bool = True
    """Reject energies and forces that are implausible in their units."""

    def sizes(self, n_frames: int) -> tuple[int, int]:
        """Return how many frames of a file of so many structures train and validate."""
        n_train, n_validation = self.n_train, self.n_validation
        tenth = max(1, min(50, n_frames // 10))
        validation = n_validation if isinstance(n_validation, int) else tenth
        return n_train if isinstance(n_train, int) else n_frames - validation, validation


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and hyperparameters."""

    name: str = "ace"
    """A key of lkm_calc.MODELS, or a custom architecture (install its package or use --import)."""
    hypers: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters that differ from the defaults of the architecture, in [model.hypers]."""


@dataclass(frozen=True)
class LossConfig:
    """Loss function."""

    kind: Literal["l1", "l2", "huber"] = "l1"
    """Loss of the difference between prediction and label."""
    energy_kind: Literal["", "l1", "l2", "huber"] = ""
    """The same for energies; empty for the value of kind."""
    forces_kind: Literal["", "l1", "l2", "huber"] = ""
    """The same for forces."""
    stress_kind: Literal["", "l1", "l2", "huber"] = ""
    """The same for stress."""
    huber_delta: float = 0.05
    """Threshold of the Huber loss, in eV, eV/Å and eV/Å³."""
    energy: float = 0.1
    """Weight of the energy term, eV per structure."""
    energy_per_atom: bool = False
    """Divide energies by the number of atoms; for data sets with very different sizes."""
    forces: float = 1.0
    """Weight of the force term, eV/Å per component."""
    stress: float = 0.0
    """Weight of the stress term, eV/Å³ per component."""
    config_type_weights: Mapping[str, Any] = field(default_factory=dict)
    """Weights of the energy, force and stress terms of frames by their config_type, in
    [loss.config_type_weights]; "Default" applies to all others and is 1 if not given."""
    gamma: float | Literal["auto"] = 0.0
    """γ, weight of the LKM term; 0 disables LKM, and model.hypers.lkm_tap selects the embeddings.
    "auto" sets γ at every step so that γ L_KD is gamma_fraction times the rest of the loss."""
    gamma_fraction: float = 0.1
    """See gamma."""
    gamma_warmup_steps: int = 0
    """Number of steps over which γ increases linearly from zero."""
    lkm_distance: Literal["mse", "mae"] = "mse"
    """Squared or absolute distance of each layer to its target."""
    lkm_teacher: Literal["mean", "deeper", "neighbours", "learned", "error"] = "mean"
    """Target of each layer: mean over layers as in the paper; mean of the deeper or of the
    neighbouring layers; mean of the other layers with learned weights; or mean of all layers
    weighted by the inverse energy error of the network truncated after each."""
    lkm_scale_free: bool = False
    """Divide by the mean square (or mean absolute value) of the embeddings, so that shrinking them
    does not reduce the loss."""
    raw_energies: bool = False
    """Fit uncentred total energies in float32 and kcal/mol, without reference energies, as some
    published code does; only to study the effect."""

    @property
    def mixes(self) -> bool:
        """Whether LKM is used."""
        return self.gamma == "auto" or self.gamma > 0


@dataclass(frozen=True)
class OptimiserConfig:
    """Optimiser and learning rate."""

    epochs: int = 150
    """Number of passes over the training frames."""
    batch_size: int = 5
    """Frames per step, summed over all processes."""
    accumulate: int = 1
    """Number of parts in which each process computes its share of a batch, to save memory; the step
    is the same."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """Learning rate schedule after the warm-up."""
    kind: Literal["adamw", "muon"] = "muon"
    """AdamW, or Muon for the weight matrices of linear layers and AdamW for the rest."""
    momentum: float = 0.95
    """Momentum of Muon."""
    learning_rate: float = 4e-3
    """Peak learning rate; half of the default is safer for AdamW. The default is 1e-3 for runs that
    start from a model (run.finetune, pretraining)."""
    final_fraction: float = 1e-3
    """Final learning rate of the cosine schedule, or lowest of the plateau schedule, as a fraction
    of the peak."""
    plateau_factor: float = 0.8
    """Factor on the learning rate after plateau_patience validations without improvement."""
    plateau_patience: int = 20
    """See plateau_factor."""
    early_stopping: int = 0
    """Stop after this many validations without improvement; 0 disables it."""
    warmup_steps: int = 500
    """Number of steps over which the learning rate increases linearly from zero."""
    restart_epoch: int = 0
    """Epoch after which the schedule starts again with half the learning rate, where a run is
    prolonged (--prolong); 0 for none."""
    weight_decay: float = 0.02
    """Decoupled weight decay of the weight matrices of linear layers. With few frames (50) a larger
    one is better (0.1)."""
    clip_norm: float = 10.0
    """Maximum norm of the gradient (gradient clipping)."""
    ema_decay: float = 0.999
    """Decay of the exponential moving average of the weights, which is validated and saved."""
    swa_fraction: float = 0.0
    """Fraction of the steps, at the end, with stochastic weight averaging (SWA) at a constant
    learning rate instead; 0 disables it."""
    swa_rate: float = 0.05
    """Learning rate of SWA as a fraction of the peak."""


@dataclass(frozen=True)
class RunConfig:
    """Output, device and performance."""

    directory: str = "runs/run"
    """Folder for checkpoints, metrics and plots."""
    seed: int = 0
    """Random seed of the split, the initial weights and the order of the frames."""
    finetune: str = ""
    """Model file or bundled model to start from, with its architecture; empty for none."""
    device: str = "auto"
    """"auto" uses CUDA if available; else a torch device such as "cpu" or "cuda:1"."""
    dtype: Literal["float32", "float64"] = "float32"
    """dtype of the weights and activations."""
    cuda_graphs: bool = False
    """Capture the gradient computation as a CUDA graph, for frames of one molecule: less launch
    overhead, more memory."""
    compile: bool = False
    """Compile the gradient computation for a CPU, for frames of one molecule: a few minutes at the
    start, then up to twice as fast. Needs a C++ compiler."""
    kernels: Literal["auto", "off"] = "auto"
    """"auto" trains with a C++ kernel on a CPU if the architecture has one that supports training
    (ace, dimenet++, mxmnet and pamnet), using first derivatives only."""
    tf32: bool = False
    """Use TF32 for matrix products on a GPU: faster, less accurate."""
    validate_every: int = 1
    """Epochs between validations."""
    checkpoint_every: int = 5
    """Epochs between checkpoints."""
    eval_batch_size: int = 16
    """Frames per batch in validation and testing."""
    tensorboard: bool = False
    """Also write metrics for TensorBoard, which must be installed."""


@dataclass(frozen=True)
class PretrainingConfig:
    """Pretraining on frames of molecular dynamics with a cheap method, sampled by the run itself.

    The model of this first stage is the start of the second one, which trains on the labelled
    frames.
    """

    calculator: str = ""
    """"gfn2-xtb" or "gfn1-xtb" (pip install lkm-calc[label]), or MODULE:NAME or FILE.py:NAME of a
    function or class that returns an ASE calculator; empty for no pretraining."""
    frames: int = 10000
    """Number of frames."""
    temperature: float = 700.0
    """Temperature in K of the Langevin dynamics, which starts from the training frames."""
    epochs: int = 15
    """Epochs of the first stage."""
    learning_rate: float = 4e-3
    """Peak learning rate of the first stage; other options of the optimiser are those of the
    second."""


@dataclass(frozen=True)
class Config:
    """Complete configuration of a run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: RunConfig = field(default_factory=RunConfig)
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, or the config.json of a run, and apply ``--section.key value`` pairs.

    Raises:
        ConfigError: The file is missing or not valid TOML or JSON, an option is unknown, or a value
            has the wrong type or is out of range.
    """
    path = expanded(path)
    kind, parse = ("JSON", json.loads) if path.suffix == ".json" else ("TOML", tomllib.loads)
    try:
        table = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"The configuration file {path} does not exist.") from error
    except ValueError as error:  # not UTF-8, or invalid TOML or JSON
        raise ConfigError(f"{path} is not valid {kind}: {error}.") from error
    return config_from_table(merge(table, parse_overrides(overrides)))


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse ``--section.key value`` pairs into a nested table; values are TOML or plain text."""
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
    """Return the options stored by an older version, completed by options added later.

    These had their defaults, except for the optimiser, which was always AdamW.
    """
    return merge(to_table(Config()), merge({"optimiser": {"kind": "adamw"}}, table))


def _toml_value(text: str) -> Any:
    """Return a word parsed as a TOML value, or unchanged if it is not one that options accept."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, str | bool | int | float | list | dict) else text


def _split_flag(word: str) -> list[str]:
    """Split ``--key=value`` into two words; return any other word unchanged."""
    return word.split("=", 1) if word.startswith("--") and "=" in word else [word]


def merge(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested table updated with the overrides."""
    merged = dict(table)
    for key, value in overrides.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = merge(below, value)
        merged[key] = value
    return merged


def config_from_table(table: Mapping[str, Any]) -> Config:
    """Build a validated configuration from nested tables.

    Raises:
        ConfigError: As for :func:`read_config`.
    """
    config: Config = _build(Config, table, "")
    _check(config)
    given = table.get("optimiser", {})
    if (config.run.finetune or config.pretraining.calculator) and "learning_rate" not in given:
        optimiser = dataclasses.replace(config.optimiser, learning_rate=FINETUNING_RATE)
        config = dataclasses.replace(config, optimiser=optimiser)
    return config


def to_table(config: Config) -> dict[str, Any]:
    """Return a configuration as nested tables of plain values, with all options."""
    return dataclasses.asdict(config)


def _build(cls: type, table: Mapping[str, Any], prefix: str) -> Any:
    """Build a dataclass from a table, recursively, rejecting unknown keys and wrong types."""
    kinds = get_type_hints(cls)
    values = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1)
            hint = f" Did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigError(
                f"Unknown option {name}.{hint} Known options: "
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
    """Convert a value to the type of its field, or raise a ConfigError."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{name} is {value!r}; choose one of {list(get_args(kind))}.")
        return value
    if get_origin(kind) is Union:  # a number or a string
        *numbers, words = get_args(kind)
        if isinstance(value, str):
            return _convert(words, value, name)
        kind = numbers[0]
    if get_origin(kind) is Mapping:
        kind = Mapping
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # In Python bool is a subclass of int, but not a valid number here.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name} is {value!r}; it must be of type {kind.__name__}.")
    return value


def _check_type_weights(weights: Mapping[str, Any]) -> None:
    """Raise a ConfigError for weights that are not numbers, negative or not finite."""
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight < math.inf:
            raise ConfigError(
                f"loss.config_type_weights.{name} is {weight!r}; it must be a finite, non-negative "
                "number."
            )


def _check(config: Config) -> None:
    """Raise a ConfigError for invalid values."""
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
        "pretraining.frames": config.pretraining.frames,
        "pretraining.temperature": config.pretraining.temperature,
        "pretraining.epochs": config.pretraining.epochs,
        "pretraining.learning_rate": config.pretraining.learning_rate,
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
            raise ConfigError(f"{name} is {value}; it must be non-negative and finite.")
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
    for name, start in (
        ("run.finetune", run.finetune),
        ("pretraining.calculator", config.pretraining.calculator),
    ):
        if config.loss.raw_energies and start:
            raise ConfigError(
                f"loss.raw_energies and {name} cannot be combined, because the model to start from "
                "has reference energies. Leave out one of them."
            )
    if config.pretraining.calculator and config.pretraining.frames < FEWEST_FRAMES:
        raise ConfigError(
            f"pretraining.frames is {config.pretraining.frames}; it must be at least "
            f"{FEWEST_FRAMES}."
        )
    if config.loss.energy == config.loss.forces == config.loss.stress == 0:
        raise ConfigError(
            "loss.energy, loss.forces and loss.stress are all 0. Set at least one of them."
        )
    if config.loss.lkm_teacher == "error" and config.loss.energy == 0:
        raise ConfigError(
            'loss.lkm_teacher is "error" but loss.energy is 0; this teacher needs fitted energies. '
            "Set loss.energy, or choose another teacher."
        )
    if not config.data.train:
        raise ConfigError("data.train is missing: set it to the file with the training frames.")
    if config.model.name not in MODELS:
        raise ConfigError(
            f"model.name is {config.model.name!r}; choose one of {', '.join(MODELS)}. For a custom "
            "architecture, install its package or pass its module with --import."
        )
