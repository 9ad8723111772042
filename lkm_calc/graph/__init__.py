"""Conversion of atoms to graphs: neighbour lists, the input of models, and scatter operations."""

from .graph import Graph as Graph
from .graph import LocalIndices as LocalIndices
from .neighbours import EdgeList as EdgeList
from .neighbours import Search as Search
from .neighbours import edges_within as edges_within
from .neighbours import neighbour_list as neighbour_list
from .scatter import count as count
from .scatter import ragged as ragged
from .scatter import sum_to as sum_to
from .skin import VerletList as VerletList
from .skin import check_skin as check_skin
from .triplets import local_indices as local_indices
