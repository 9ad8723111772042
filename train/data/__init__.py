"""Labelled frames in memory, their units and references, and the batches cut from them."""

from .config_types import check_config_types as check_config_types
from .config_types import frame_weights as frame_weights
from .conversion import ENERGY_UNITS as ENERGY_UNITS
from .conversion import FORCE_UNITS as FORCE_UNITS
from .conversion import LENGTH_UNITS as LENGTH_UNITS
from .conversion import STRESS_UNITS as STRESS_UNITS
from .conversion import factor as factor
from .edges import edges_of as edges_of
from .frames import MIN_DISTANCE as MIN_DISTANCE
from .frames import MIN_FRAMES_FOR_STIFFNESS as MIN_FRAMES_FOR_STIFFNESS
from .frames import STIFFNESS_RANGE as STIFFNESS_RANGE
from .frames import DataError as DataError
from .frames import Frames as Frames
from .frames import Split as Split
from .frames import check_frames as check_frames
from .frames import lowest_energies as lowest_energies
from .frames import random_split as random_split
from .label_counts import count_labels as count_labels
from .label_counts import describe_config_types as describe_config_types
from .label_counts import describe_labels as describe_labels
from .loader import Batch as Batch
from .loader import GraphFrames as GraphFrames
from .loader import Totals as Totals
from .loader import epoch_order as epoch_order
from .reference import fit_reference_energies as fit_reference_energies
