"""Paths as users write them."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """Return a path with a leading ``~`` or ``~user`` replaced by the home folder, as shells do.

    Shells leave it as it is in quotes, in ``--output=~/runs`` and in configuration files. Where
    there is no such user the path stays as it is.
    """
    return Path(os.path.expanduser(path))
