"""Detection of extrapolation: calibration, guards and collection of structures.

The latent distance is computed in :mod:`lkm_calc.embeddings`.
"""

from .calibration import CALIBRATION_ENTRY as CALIBRATION_ENTRY
from .calibration import QUANTILES as QUANTILES
from .calibration import Calibration as Calibration
from .calibration import calibration_of as calibration_of
from .calibration import pair_names as pair_names
from .collection import Collection as Collection
from .guards import ACTIONS as ACTIONS
from .guards import Excess as Excess
from .guards import ExtrapolationError as ExtrapolationError
from .guards import ExtrapolationWarning as ExtrapolationWarning
from .guards import Guard as Guard
from .guards import Thresholds as Thresholds
