"""Checks of the arguments of architectures."""

from collections.abc import Iterable, Mapping
from typing import Any

ANY_SIZE = (1, 100_000)
"""Smallest and largest number of features or layers."""


def check_sizes(values: Mapping[str, Any], ranges: Mapping[str, tuple[int, int]]) -> None:
    """Raise a ValueError for the first size that is not an integer in its range."""
    for name, (low, high) in ranges.items():
        value = values[name]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{name} is {value!r}; it must be an integer from {low} to {high}.")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise a ValueError if an option has an unknown value."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}.")
