"""Shared code of the subcommands: data and models."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lkm_calc import EnergyModel, load_model
from lkm_calc.commands import add_batch_size_option, add_device_option, add_import_option
from lkm_calc.files import expanded

from ..config import ConfigError, DataConfig
from ..configs import CONFIGS
from ..data import DataError, Frames, structures_of
from ..fit import check_elements, device_of
from ..formats import FORMATS, LabelKeys, read_frames


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the data file and its options, named like the keys of the section data."""
    parser.add_argument("data", metavar="DATA", help="data file in any format supported by fit")
    parser.add_argument("--format", default=DataConfig.format, help="auto, " + ", ".join(FORMATS))
    parser.add_argument(
        "--labels", choices=("revised", "original"), help="labels of revised MD17 to use"
    )
    parser.add_argument("--target", help="property of QM9")
    parser.add_argument("--energy-unit", default="", help="for files that do not specify it")
    parser.add_argument("--length-unit", default="", help="for files that do not specify it")
    for label in LabelKeys._fields:
        parser.add_argument(
            f"--{label}-key", metavar="NAME", help=f"name of the {label} in the file"
        )
    parser.add_argument(
        "--no-check-units",
        dest="check_units",
        action="store_false",
        help="accept labels that are implausible in their units",
    )


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """Add options for data and for evaluating a model."""
    add_data_options(parser)
    add_device_option(parser)
    add_batch_size_option(parser, 16)
    add_import_option(parser)


def read(
    options: argparse.Namespace, check_units: bool, learnt: Mapping[str, Any] | None = None
) -> Frames:
    """Read the data file; options not given default to the data section of the training."""
    learnt = learnt or {}
    keys = [f"{label}_key" for label in LabelKeys._fields]
    return read_frames(
        options.data,
        options.format,
        options.labels or learnt.get("labels", DataConfig.labels),
        options.target or learnt.get("target", DataConfig.target),
        options.energy_unit,
        options.length_unit,
        check_units,
        LabelKeys(*(getattr(options, key) or learnt.get(key, "") for key in keys)),
    )


def model_and_frames(options: argparse.Namespace) -> tuple[EnergyModel, Frames]:
    """Return the model on its device, and the frames, checked for unit and elements."""
    check_batch_size(options)
    model = load_model(options.model, device=device_of(options.device, "--device"))
    frames = read(options, options.check_units, model.provenance.get("config", {}).get("data"))
    check_unit(model, frames, options.data)
    if not frames.isolated.all():
        check_elements(model, structures_of(frames, options.data), options.data)
    return model, frames


def check_batch_size(options: argparse.Namespace) -> None:
    """Raise a ConfigError if the batch size is not positive."""
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size is {options.batch_size}; it must be at least 1.")


def check_unit(model: EnergyModel, frames: Frames, source: str) -> None:
    """Raise a DataError if the model was trained on a property in another unit."""
    unit = model.provenance.get("energy_unit", "eV")
    if frames.energy_unit != unit:
        raise DataError(
            f"{source} contains energies in {frames.energy_unit}, but the model was trained on a "
            f"property in {unit}. Select the property with --target."
        )


def find_config(name: str, molecule: str | None) -> tuple[Path, str | None]:
    """Return the path of a configuration and, if bundled, its default run directory."""
    path = expanded(name)
    if path.suffix or path.is_file():
        if molecule:
            raise ConfigError(
                f"--molecule is for bundled configurations, not for {name}. Remove the option."
            )
        return path, None
    labels = [f"{name}-{molecule}", name] if molecule else [name]
    for label in labels:
        path = CONFIGS / f"{label}.toml"
        if path.exists():
            return path, f"runs/{labels[0]}"
    raise ConfigError(
        f"There is no bundled configuration {name!r}. Specify a TOML file, before other options, "
        f"or one of {bundled_configs()}."
    )


def bundled_configs() -> str:
    """Return the names of the bundled configurations."""
    return ", ".join(sorted(path.stem for path in CONFIGS.glob("*.toml")))
