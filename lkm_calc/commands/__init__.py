"""The subcommands of lkm-calc, one module each."""

from .common import add_batch_size_option as add_batch_size_option
from .common import add_device_option as add_device_option
from .common import add_import_option as add_import_option
