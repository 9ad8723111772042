"""The JavaScript libraries of a page, which come with Python packages."""

import base64
import functools
import gzip
import importlib
from importlib import resources
from typing import Any


class PageError(RuntimeError):
    """A page cannot be written; the message says why and what to do."""


def optional(name: str) -> Any:
    """Import a module of the extra ``report``, or raise a PageError."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PageError(
            f"Pages need plotly and chemiscope ({error}): pip install lkm-calc[report]."
        ) from error


def check_packages() -> None:
    """Raise a PageError if plotly or chemiscope is not installed."""
    optional("plotly.offline")
    optional("chemiscope")


@functools.cache
def libraries() -> dict[str, str]:
    """Return the packed source of plotly.js and chemiscope, by name.

    Raises:
        PageError: They are not installed, or chemiscope lacks the file that is needed.
    """
    plotly, chemiscope = optional("plotly.offline"), optional("chemiscope")
    script = resources.files(chemiscope) / "sphinx" / "static" / "chemiscope.min.js"
    try:
        source = script.read_text(encoding="utf-8")
    except OSError as error:
        raise PageError(
            f"The installed chemiscope {chemiscope.__version__} does not contain chemiscope.min.js "
            f"({error}). Install another version: pip install 'chemiscope>=1.1'."
        ) from error
    return {"plotly": packed(plotly.get_plotlyjs()), "chemiscope": packed(source)}


def packed(text: str) -> str:
    """Return text compressed by gzip, in base64."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii")
