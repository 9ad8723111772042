"""Expansion of paths given by users."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """Return a path with a leading ``~`` or ``~user`` replaced by the home folder.

    Shells do not expand it in quotes, in ``--output=~/runs`` or in configuration files. The path is
    unchanged if there is no such user.
    """
    return Path(os.path.expanduser(path))
