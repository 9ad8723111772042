"""Consistency of energies, forces and positions, one comparison per module."""

from .bonds import BondTest as BondTest
from .bonds import compare_bonds as compare_bonds
from .neighbours import NeighbourTest as NeighbourTest
from .neighbours import compare_neighbours as compare_neighbours
from .pairs import FULL_CORRELATION as FULL_CORRELATION
from .pairs import MIN_CORRELATION as MIN_CORRELATION
from .pairs import PairTest as PairTest
from .pairs import compare_pairs as compare_pairs
from .potential import PotentialTest as PotentialTest
from .potential import compare_potential as compare_potential
from .units import Evidence as Evidence
from .units import guess_units as guess_units
