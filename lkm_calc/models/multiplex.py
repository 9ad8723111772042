"""What MXMNet and PAMNet share: atoms, and the edges of a global and a local graph."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..graph import Graph
from ..nn import SIZES, AtomEmbedding, MultiplexBasis, check_choice, check_sizes
from .energy import EnergyModel


class MultiplexModel(EnergyModel):
    """A model over two graphs, with embeddings of atoms and features of edges and angles.

    Args:
        hypers: Those of the architecture.
        taps: Which embeddings it can return.
    """

    def __init__(self, hypers: Mapping[str, Any], taps: Sequence[str]) -> None:
        check_sizes(hypers, SIZES)
        check_choice("lkm_tap", hypers["lkm_tap"], taps)
        super().__init__(hypers["cutoff"], hypers)
        self.lkm_tap: str = hypers["lkm_tap"]
        self.embedding = AtomEmbedding(hypers["hidden"])
        self.basis = MultiplexBasis(
            hypers["hidden"],
            hypers["num_radial"],
            hypers["num_spherical"],
            hypers["num_spherical_radial"],
            hypers["cutoff"],
            hypers["local_cutoff"],
            hypers["envelope_exponent"],
            hypers.get("two_hop", True),
        )

    def prepare(self, graph: Graph) -> Graph:
        """Return the graph with its local edges and the pairs of them."""
        return self.basis.prepare(graph)
