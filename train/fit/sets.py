"""The training and validation frames of a run, and test frames from the same file."""

import dataclasses
from typing import NamedTuple

from lkm_calc.files import expanded

from ..config import Config, ConfigError, DataConfig
from ..data import (
    DataError,
    Frames,
    IsolatedAtoms,
    Split,
    check_config_types,
    drawn_structures,
    isolated_atoms,
    split_structures,
)
from ..formats import read_data


class Sets(NamedTuple):
    """The frames of a run that are not from a test file."""

    train: Frames
    """Training frames, without isolated atoms."""
    validation: Frames
    test: Frames | None
    """Test frames drawn from the training file, if any."""
    split: Split
    """Their indices in their files, which are the same file without ``data.validation``."""
    isolated: IsolatedAtoms
    """The isolated atoms of the training file."""
    options: DataConfig
    """The options, with numbers of frames instead of "auto"."""


def read_sets(config: Config) -> Sets:
    """Read the data files of a run, except the test file, and draw the frames of each part.

    Raises:
        ConfigError: The training file is also the validation file, or the loss has weights of a
            config_type that does not occur in the training file.
        DataError: A file cannot be read, has too few frames, or contains isolated atoms only; or
            the validation file contains another property.
    """
    options, seed = config.data, config.run.seed
    frames = read_data(options.train, options)
    check_config_types(frames, config.loss.config_type_weights, options.train)
    isolated = isolated_atoms(frames, options.train)
    count = len(frames) - isolated.n_frames
    if not options.validation:
        n_train, n_validation = options.sizes(count)
        split = split_structures(frames, n_train, n_validation, seed, options.train, options.n_test)
        validation = frames.select(split.validation)
    else:
        if expanded(options.train).resolve() == expanded(options.validation).resolve():
            raise ConfigError(
                f"data.train and data.validation are both {options.train}. Leave out "
                "data.validation to draw the validation frames from it."
            )
        other = read_data(options.validation, options)
        if other.energy_unit != frames.energy_unit:
            raise DataError(
                f"{options.validation} contains a property in {other.energy_unit}, but "
                f"{options.train} one in {frames.energy_unit}. They must be the same."
            )
        split = Split(
            drawn_structures(frames, options.n_train, seed, "train", options.train),
            drawn_structures(other, options.n_validation, seed, "validation", options.validation),
        )
        validation = other.select(split.validation)
        n_train, n_validation = len(split.train), len(split.validation)
    options = dataclasses.replace(options, n_train=n_train, n_validation=n_validation)
    test = frames.select(split.test) if len(split.test) else None
    return Sets(frames.select(split.train), validation, test, split, isolated, options)
