"""The log of the steps outside the training distribution."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..files import replacing
from ..uncertainty import Excess


class ExtrapolationRow(NamedTuple):
    """A line of the log: a threshold that was exceeded at a step."""

    step: int
    time_ps: float
    measure: str
    """See :class:`lkm_calc.uncertainty.Excess`."""
    value: float
    threshold: float
    atoms: tuple[int, ...]


class ExtrapolationLog:
    """A CSV file with a line for each step outside the training distribution and each measure.

    It exists only for runs with a guard.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self) -> None:
        """Create the file without lines."""
        self._write([])

    def add(self, step: int, time: float, excesses: Sequence[Excess]) -> None:
        """Append lines.

        Args:
            step: Step of the simulation.
            time: Its time in ps.
            excesses: The thresholds that were exceeded.
        """
        rows = [(step, time, e.measure, e.value, e.threshold, e.atoms) for e in excesses]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(_line(ExtrapolationRow(*row)) for row in rows)

    def steps(self) -> int:
        """Return the number of steps in the file; 0 if there is none."""
        return len({row.step for row in self.rows()}) if self.path.exists() else 0

    def rows(self) -> list[ExtrapolationRow]:
        """Return the complete lines of the file, which may end with part of a line.

        Raises:
            ValueError: The file is damaged.
        """
        with self.path.open(encoding="utf-8", newline="") as file:
            lines = [line for line in file if line.endswith("\n")]
        try:
            return [_row(values) for values in csv.DictReader(lines)]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.path} is damaged ({error!r}). Restore a copy, or remove it to go on "
                "without the steps in it."
            ) from error

    def rewind(self, step: int) -> None:
        """Remove the lines of steps after this one; create the file if there is none."""
        rows = self.rows() if self.path.exists() else []
        self._write([row for row in rows if row.step <= step])

    def _write(self, rows: Sequence[ExtrapolationRow]) -> None:
        head = ",".join(ExtrapolationRow._fields) + "\n"
        with replacing(self.path) as temporary:
            temporary.write_text(head + "".join(map(_line, rows)), encoding="utf-8")


def _row(values: Mapping[str, str]) -> ExtrapolationRow:
    """Return a line from its values by name."""
    return ExtrapolationRow(
        int(values["step"]),
        float(values["time_ps"]),
        values["measure"],
        float(values["value"]),
        float(values["threshold"]),
        tuple(map(int, values["atoms"].split())),
    )


def _line(row: ExtrapolationRow) -> str:
    """Return a line at full precision."""
    values = (row.step, repr(row.time_ps), row.measure, repr(row.value), repr(row.threshold))
    return f"{','.join(map(str, values))},{' '.join(map(str, row.atoms))}\n"
