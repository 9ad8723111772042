"""Configurations from TOML, JSON and command lines."""

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lkm_calc.files import expanded

from .checks import check_config
from .options import Config, ConfigError

FINETUNING_RATE = 1e-3
"""Default learning rate of a run that starts from a model."""


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
    check_config(config)
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
