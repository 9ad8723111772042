"""Checks of single frames and of duplicates, one per module, and their findings."""

from .compositions import Composition as Composition
from .compositions import list_compositions as list_compositions
from .distances import MIN_CONTACT as MIN_CONTACT
from .distances import measure_distances as measure_distances
from .duplicates import find_duplicates as find_duplicates
from .energies import References as References
from .energies import measure_energies as measure_energies
from .findings import Finding as Finding
from .findings import Floats as Floats
from .findings import Ints as Ints
from .findings import Mask as Mask
from .findings import indices as indices
from .findings import name_frames as name_frames
from .forces import judge_balance as judge_balance
from .forces import mean_stiffness as mean_stiffness
from .forces import measure_balance as measure_balance
from .forces import measure_forces as measure_forces
from .isolated import IsolatedFigures as IsolatedFigures
from .isolated import measure_isolated as measure_isolated
from .statistics import nonzero as nonzero
from .statistics import robust_scores as robust_scores
from .statistics import through_zero as through_zero
from .usable import find_unusable as find_unusable
from .usable import judge_partial as judge_partial
