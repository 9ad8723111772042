"""The subcommands of lkm-calc, a module each."""

from .common import add_import_option as add_import_option
