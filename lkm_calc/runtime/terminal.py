"""Standard streams as they may be: closed, cut off by the next program, or of ASCII alone."""

import io
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

CUT_OFF = 141
"""Exit status of a program whose reader went away, as shells give it: 128 + SIGPIPE."""

Arguments = ParamSpec("Arguments")


def on_any_terminal(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """Return the main function of a command that runs whatever became of its standard streams.

    Letters that the encoding of a stream lacks, such as Å where the locale is ASCII, become
    question marks. Where stdout is a pipe whose reader has gone, the command ends without a word.
    """

    @wraps(main)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
        prepare_streams()
        try:
            status = main(*args, **kwargs)
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            # What is still in the buffer must not be tried again when the interpreter ends.
            sys.stdout = _nowhere()
            return CUT_OFF

    return run


def prepare_streams() -> None:
    """Let stdout and stderr take any text; what is written to a closed one is lost."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _nowhere())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _nowhere() -> io.TextIOWrapper:
    return open(os.devnull, "w", encoding="utf-8")


def hide_progress() -> bool | None:
    """Return tqdm's ``disable``: None, which hides where there is no terminal, or no stderr."""
    return True if sys.stderr is None else None


def shows_progress() -> bool:
    """Tell whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()
