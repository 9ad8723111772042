"""Readers of labelled frames: public data sets, ASE formats and lkm-calc's HDF5 container.

:func:`read_frames` reads any of them.
"""

from .arrays import DAMAGE as DAMAGE
from .arrays import reading as reading
from .hdf5 import read_description as read_description
from .hdf5 import read_hdf5 as read_hdf5
from .hdf5 import write_hdf5 as write_hdf5
from .label_names import LabelKeys as LabelKeys
from .md17 import read_md17 as read_md17
from .qm9 import TARGETS as TARGETS
from .qm9 import pack_qm9 as pack_qm9
from .qm9 import read_qm9 as read_qm9
from .read import FORMATS as FORMATS
from .read import read_data as read_data
from .read import read_frames as read_frames
