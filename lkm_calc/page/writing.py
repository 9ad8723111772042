"""Assembly of the file."""

import json
import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from ..files import replacing
from ..runtime import package_version
from .contents import Block, Code, Page, Plot, Table
from .libraries import libraries, packed
from .structures import COLOURS, Scene


def write_page(path: Path, page: Page) -> None:
    """Write a page to a file, atomically.

    Raises:
        PageError: plotly or chemiscope is not installed.
    """
    text = page_text(page)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page_text(page: Page) -> str:
    """Return the HTML of a page.

    Scripts and data are compressed by gzip and unpacked by the browser.

    Raises:
        PageError: plotly or chemiscope is not installed.
    """
    scripts, scene = libraries(), page.scene
    blocks = [*page.beside, *page.below]
    plots = [block for block in blocks if isinstance(block, Plot)]
    data = {
        "plots": [{**plot.figure, "parity": plot.parity} for plot in plots],
        "dataset": None if scene is None else scene.dataset(),
        "captions": [] if scene is None else [frame.caption for frame in scene.frames],
        "focus": [] if scene is None else [frame.focus for frame in scene.frames],
        "legends": [] if scene is None else scene.legends(),
    }
    packs = scripts | {"data": packed(_json(data))}
    if scene is None:
        del packs["chemiscope"]
    files = resources.files(__package__)
    numbers = {id(plot): k for k, plot in enumerate(plots)}
    return Template((files / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(page.title),
        lead="".join(f"<p>{escape(line)}</p>" for line in page.lead),
        beside=_blocks(page.beside, numbers),
        scene="" if scene is None else _scene(scene),
        layout="linked" if scene is not None else "plain",
        below=_blocks(page.below, numbers),
        version=escape(package_version()),
        style=(files / "page.css").read_text(encoding="utf-8"),
        script=(files / "page.js").read_text(encoding="utf-8"),
        packs="\n".join(
            f'<script type="text/plain" id="pack-{name}">{text}</script>'
            for name, text in packs.items()
        ),
    )


def _json(data: Any) -> str:
    """Return JSON with null for NaN and infinity, which are not JSON."""
    try:
        return json.dumps(data, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    """Return JSON values with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scene(scene: Scene) -> str:
    rows = "".join(
        f'<li><span style="color: {colour}">⟶</span> <span id="legend-{k}"></span></li>'
        for k, (_, colour) in enumerate(zip(scene.units, COLOURS, strict=False))
    )
    return (
        '<aside id="scene"><p id="caption">Loading.</p><div id="viewer"></div>'
        f'<div id="info"></div><div id="meta"></div><ul>{rows}</ul></aside>'
    )


def _blocks(blocks: Sequence[Block], numbers: dict[int, int]) -> str:
    return "\n".join(_block(block, numbers) for block in blocks)


def _block(block: Block, numbers: dict[int, int]) -> str:
    note = f'<p class="note">{escape(block.note)}</p>' if block.note else ""
    kind = type(block).__name__.lower()
    body = {Plot: _plot, Table: _table, Code: _code}[type(block)](block, numbers)
    return f'<section class="{kind}"><h2>{escape(block.title)}</h2>{body}{note}</section>'


def _plot(plot: Any, numbers: dict[int, int]) -> str:
    return f'<div class="figure" id="plot-{numbers[id(plot)]}"></div>'


def _table(table: Any, _numbers: dict[int, int]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = []
    for k, row in enumerate(table.rows):
        structure = table.structures[k] if table.structures else -1
        link = f' data-structure="{structure}" tabindex="0"' if structure >= 0 else ""
        rows.append(f"<tr{link}>{''.join(map(_cell, row))}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    """Return a cell; single words are not broken at hyphens."""
    several = ' class="words"' if " " in text else ""
    return f"<td{several}>{escape(text)}</td>"


def _code(code: Any, _numbers: dict[int, int]) -> str:
    return f"<pre>{escape(code.text)}</pre>"
