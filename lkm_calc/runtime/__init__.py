"""Interaction with the machine and torch: device, threads, precision, locks, signals."""

from .ambient import float32_by_default as float32_by_default
from .ambient import own_precision as own_precision
from .ambient import own_settings as own_settings
from .device import choose_device as choose_device
from .locks import ThreadLock as ThreadLock
from .locks import only_process as only_process
from .precision import deterministic as deterministic
from .precision import fast_matmul as fast_matmul
from .precision import tf32_matmul as tf32_matmul
from .stopping import stop_signals as stop_signals
from .terminal import hide_progress as hide_progress
from .terminal import on_any_terminal as on_any_terminal
from .terminal import shows_progress as shows_progress
from .threads import threads_for as threads_for
from .threads import threads_worth as threads_worth
from .versions import add_version as add_version
from .versions import package_version as package_version
