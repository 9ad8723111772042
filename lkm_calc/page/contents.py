"""What a page shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .structures import Scene

Figure = Mapping[str, Any]
"""A figure of plotly: ``data`` and ``layout`` as JSON values."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot.

    Points are linked to structures by ``customdata``: a list for each point, of which the first
    two values are the index of the structure in the scene and that of the atom, or -1 for none.
    """

    title: str
    figure: Figure
    note: str = ""
    """Explanation below the plot."""
    parity: bool = False
    """The last value of ``customdata`` is the difference to the reference ``x``. The traces have no
    ``y``: the reader selects the predicted value or the error."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    structures: Sequence[int] = ()
    """Index of the structure in the scene that a click on each row shows, or -1 for none; empty if
    there are none."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Text to copy, such as a command."""

    title: str
    text: str
    note: str = ""


Block = Plot | Table | Code


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page: blocks beside the structures, then blocks below them."""

    title: str
    lead: Sequence[str]
    """Paragraphs at the top."""
    beside: Sequence[Block] = ()
    scene: Scene | None = None
    """The structures; None for a page without."""
    below: Sequence[Block] = field(default_factory=tuple)
