"""Handling of standard streams that are closed, broken pipes or ASCII only."""

import io
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

CUT_OFF = 141
"""Exit status after a broken pipe, as in shells: 128 + SIGPIPE."""

Arguments = ParamSpec("Arguments")


def on_any_terminal(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """Decorate the main function of a command to tolerate unusual standard streams.

    Characters that the encoding of a stream lacks, such as Å in an ASCII locale, are written as
    question marks. If stdout is a broken pipe, the command ends silently.
    """

    @wraps(main)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
        prepare_streams()
        try:
            status = main(*args, **kwargs)
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            # The interpreter must not try to flush the buffer again at exit.
            sys.stdout = _nowhere()
            return CUT_OFF

    return run


def prepare_streams() -> None:
    """Make stdout and stderr accept any text; output to a closed stream is discarded."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _nowhere())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _nowhere() -> io.TextIOWrapper:
    return open(os.devnull, "w", encoding="utf-8")


def hide_progress() -> bool | None:
    """Return ``disable`` for tqdm: None hides the bar without a terminal, True without stderr."""
    return True if sys.stderr is None else None


def shows_progress() -> bool:
    """Return whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()
