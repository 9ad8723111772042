"""The subcommands of lkm-calc, one module each."""

from .common import add_import_option as add_import_option
