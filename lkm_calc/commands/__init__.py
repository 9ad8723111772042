"""The subcommands of lkm-calc, one module each."""

from .common import Subcommands as Subcommands
from .common import add_batch_size_option as add_batch_size_option
from .common import add_command as add_command
from .common import add_device_option as add_device_option
from .common import add_import_option as add_import_option
from .common import add_open_option as add_open_option
from .common import read_structure as read_structure
from .common import show_page as show_page
from .common import tell as tell
