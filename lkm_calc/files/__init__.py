"""File access: atomic writing, checksums, reading with ASE, and the cache of compiled code."""

from .ase_files import reading_by_ase as reading_by_ase
from .atomic import replacing as replacing
from .checksum import checksum_of as checksum_of
from .checksum import sealed as sealed
from .checksum import unsealed as unsealed
from .paths import expanded as expanded
from .program_files import COMPILER_ERRORS as COMPILER_ERRORS
from .program_files import CompileError as CompileError
from .program_files import cache_folder as cache_folder
from .program_files import check_owner as check_owner
from .program_files import first_line as first_line
from .program_files import not_compiled as not_compiled
from .program_files import open_folder as open_folder
from .program_files import processor as processor
from .program_files import write_program as write_program
from .structures import iread_structures as iread_structures
from .structures import is_xyz as is_xyz
from .structures import read_structures as read_structures
