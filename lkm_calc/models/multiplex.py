"""Base class of MXMNet and PAMNet: embeddings of atoms, and edges of a global and a local graph."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..graph import Graph
from ..nn import SIZES, AtomEmbedding, MultiplexBasis, check_choice, check_sizes
from .energy import EnergyModel


class MultiplexModel(EnergyModel):
    """A model with a global and a local graph, and features of edges and angles.

    Args:
        hypers: Hyperparameters of the architecture.
        taps: Allowed values of ``lkm_tap``.
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
        """Return the graph with its local edges and pairs of local edges."""
        return self.basis.prepare(graph)
