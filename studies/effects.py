"""Effects in a study: means over seeds, and differences between runs with the same seed."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import t as student

from .arms import Arm
from .runner import result_path
from .tables import mean_and_error, written

Result = Mapping[str, Any]


class Mean(NamedTuple):
    """A mean over seeds."""

    value: float
    error: float
    """Standard error; NaN for one seed."""
    n: int

    @property
    def is_clear(self) -> bool:
        """Whether the mean is clear of zero at 95 %, by Student's t."""
        return self.n > 1 and abs(self.value) > student.ppf(0.975, self.n - 1) * self.error

    def text(self, digits: int, sign: str = "") -> str:
        """Return it with its standard error, as :func:`studies.tables.written` does."""
        return written(self.value, self.error, digits, sign)


class Setting(NamedTuple):
    """Trainings that differ in γ and seed only."""

    labels: dict[str, str]
    """Of the other axes."""
    results: dict[str, dict[str, Result]]
    """By γ and by seed, those there are."""

    @property
    def gammas(self) -> list[str]:
        """The labels of γ that there are results of."""
        return [gamma for gamma, seeds in self.results.items() if seeds]


def mean(values: Iterable[float]) -> Mean:
    """Return mean and standard error."""
    found = list(values)
    value, error = mean_and_error(found)
    return Mean(float(value), float(error), len(found))


def settings(arms: Sequence[Arm], results: Path) -> list[Setting]:
    """Return the results of a study by setting, γ and seed; arms not run yet are left out."""
    found: dict[tuple[tuple[str, str], ...], Setting] = {}
    for arm in arms:
        labels = {k: v for k, v in arm.labels.items() if k not in ("gamma", "seed")}
        setting = found.setdefault(tuple(labels.items()), Setting(labels, {}))
        seeds = setting.results.setdefault(arm.labels["gamma"], {})
        path = result_path(arm, results)
        if path.exists():
            seeds[arm.labels["seed"]] = json.loads(path.read_text(encoding="utf-8"))
    return list(found.values())


def error_of(result: Result, metric: str) -> float | None:
    """Return an error on the test frames or, where there are none, the validation frames."""
    errors = result["test"] or result["validation"]
    value: float | None = errors.get(metric)
    return value


def error_mean(setting: Setting, gamma: str, metric: str) -> Mean | None:
    """Return the mean of an error over seeds, or None without results of it."""
    errors = [error_of(result, metric) for result in setting.results.get(gamma, {}).values()]
    values = [error for error in errors if error is not None]
    return mean(values) if values else None


def effect(setting: Setting, gamma: str, metric: str, without: str = "0") -> Mean | None:
    """Return the relative change of an error that γ makes, in %, between runs of the same seed.

    Such runs have weights, split and order of the frames in common, so less of chance is left in
    their difference than in that of the means. None without a seed that both have.
    """
    plain, mixed = (setting.results.get(label, {}) for label in (without, gamma))
    changes = []
    for seed in plain.keys() & mixed.keys():
        old, new = error_of(plain[seed], metric), error_of(mixed[seed], metric)
        if old is not None and new is not None:
            changes.append(100 * (new - old) / old)
    return mean(changes) if changes else None
