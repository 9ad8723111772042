"""A study, defined by a TOML file, and its arms: training runs that differ in what is studied."""

import hashlib
import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train.config import Config, ConfigError, config_from_table, merge, parse_overrides, to_table

HERE = Path(__file__).parent
STAND_IN = HERE.parent / "md_examples" / "ethanol_gfn2.h5"
"""Frames for a quick run, which come with the project."""

HOW = ("run.directory", "run.device", "run.compile", "run.cuda_graphs", "run.checkpoint_every",
       "run.eval_batch_size", "run.tensorboard")  # fmt: skip
"""Options that leave the result of a training as it is, but for rounding."""

REFERENCE = merge(
    to_table(Config()),
    {
        "data": {"n_train": 950, "n_validation": 50},
        "model": {"name": "dimenet++"},
        "loss": {"gamma": 0.01},
        "optimiser": {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.0},
    },
)
"""The defaults when the first results were named, which a new default does not rename."""


@dataclass(frozen=True)
class Arm:
    """One training of a study."""

    study: str
    labels: Mapping[str, str]
    """Its value on each axis."""
    config: Config
    """Without folder; data files relative to the folder of data sets."""

    @property
    def name(self) -> str:
        """What ``--only`` looks into."""
        return "_".join(f"{axis}={label}" for axis, label in self.labels.items())

    @property
    def changes(self) -> dict[str, Any]:
        """The options that tell this training from others, where they are not REFERENCE's.

        A new option thus makes no result an old one, nor does another machine.
        """
        table = to_table(self.config)
        return {
            f"{section}.{key}": value
            for section, options in table.items()
            for key, value in options.items()
            if value != REFERENCE[section][key] and f"{section}.{key}" not in HOW
        }

    @property
    def digest(self) -> str:
        """The name under which the result of this training is kept, whichever studies it is in."""
        text = json.dumps(self.changes, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_study(path: Path) -> list[Arm]:
    """Return the arms of a study, in the order in which they are to run.

    A study has a table ``base``, the configuration that its arms share; ``axes.<axis>.<label>``,
    what a label of an axis changes of it; and ``[[runs]]``, each of which names labels of some
    axes, all combinations of which are arms. What all studies share stands in common.toml, and the
    axis ``seed`` is known.

    Raises:
        ConfigError: The file is not a study, or an arm's configuration cannot be used.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        common = tomllib.loads((HERE / "common.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"The study {path} cannot be read: {error}") from error
    strange = sorted(set(table) - {"base", "axes", "runs"})
    if strange or not table.get("runs"):
        wrong = f"unknown keys {', '.join(strange)}" if strange else "no [[runs]]"
        raise ConfigError(f"{path} is not a study: {wrong}. It has [base], [axes] and [[runs]].")
    merged = merge(common, table)
    base, axes = merged["base"], merged["axes"]
    arms: dict[str, Arm] = {}
    for run in table["runs"]:
        for labels in itertools.product(*(map(str, run[axis]) for axis in run)):
            arm = _arm(path, base, axes, dict(zip(run, labels, strict=True)))
            arms.setdefault(arm.name, arm)
    return list(arms.values())


def _arm(
    path: Path, base: Mapping[str, Any], axes: Mapping[str, Any], labels: dict[str, str]
) -> Arm:
    config = base
    for axis, label in labels.items():
        if axis == "seed" and label.isdecimal():
            change = {"run": {"seed": int(label)}}
        elif label in axes.get(axis, {}):
            change = axes[axis][label]
        else:
            raise ConfigError(f"{path}: there is no [axes.{axis}.{label}], nor in common.toml.")
        config = merge(config, change)
    if not {"gamma", "seed"} <= labels.keys():
        raise ConfigError(f"{path}: runs need the axes gamma and seed; got {', '.join(labels)}.")
    return Arm(path.stem, labels, _as_if_unmixed(config_from_table(config)))


def _as_if_unmixed(config: Config) -> Config:
    """Return a configuration without options of mixing, if it does not mix: then they do nothing.

    So arms that differ in them alone are one training.
    """
    if config.loss.mixes:
        return config
    table = to_table(config)
    table["model"]["hypers"].pop("lkm_tap", None)
    kept = {k: v for k, v in table["loss"].items() if not k.startswith("lkm_")}
    return config_from_table(table | {"loss": kept})


def how_to_run(words: Sequence[str]) -> dict[str, Any]:
    """Return options of a command line as a table.

    Raises:
        ConfigError: One of them would change the results, which are known by the study's file.
    """
    table = parse_overrides(words)
    allowed = [option for option in HOW if option != "run.directory"]  # each arm has its own
    strange = {f"{section}.{key}" for section, keys in table.items() for key in keys} - {*allowed}
    if strange:
        raise ConfigError(
            f"{', '.join(sorted(strange))} cannot be given here: what changes the results stands "
            f"in the study. Options here: {', '.join(allowed)}."
        )
    return table


def study_files() -> list[Path]:
    """Return the files of all studies."""
    return sorted(path for path in HERE.glob("*.toml") if path.stem != "common")


def quick(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms of the first seed as trainings of a few steps on frames that are at hand."""
    first = {name: arm for arm in reversed(arms) if (name := _without_seed(arm))}
    found = []
    for arm in reversed(first.values()):
        c = arm.config
        data = replace(
            c.data,
            train=str(STAND_IN),
            test="",
            format="auto",
            labels="revised",
            n_train=4,
            n_validation=2,
        )
        optimiser = replace(c.optimiser, epochs=1, batch_size=2)
        run = replace(c.run, compile=False, checkpoint_every=1)
        found.append(replace(arm, config=replace(c, data=data, optimiser=optimiser, run=run)))
    return found


def _without_seed(arm: Arm) -> tuple[str, ...]:
    return tuple(label for axis, label in arm.labels.items() if axis != "seed")
