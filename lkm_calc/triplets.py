"""Edges within a radius, and the pairs of them that meet at an atom: the index sets of angles."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .geometry import lengths_and_directions
from .graph import Graph
from .scatter import ragged


class Edges(NamedTuple):
    """Directed edges j → i with their geometry, both directions of each pair present."""

    source: Int[Tensor, " edges"]
    target: Int[Tensor, " edges"]
    reverse: Int[Tensor, " edges"]
    """The edge i → j of each edge j → i, through the same periodic image."""
    distances: Float[Tensor, " edges"]
    """In Å."""
    directions: Float[Tensor, "edges 3"]
    """Unit vectors from source to target."""

    @classmethod
    def from_graph(cls, graph: Graph, dtype: torch.dtype) -> "Edges":
        """Return every edge of a graph, its geometry cast to ``dtype``."""
        source, target = graph.edge_index
        distances, directions = lengths_and_directions(graph.edge_vectors().to(dtype))
        return cls(source, target, graph.reverse, distances, directions)

    def within(self, radius: float) -> "Edges":
        """Return the edges shorter than ``radius`` Å."""
        # Both directions or none, should the two distances differ in the last bit.
        short = self.distances.detach() < radius
        short = short & short[self.reverse]
        kept = short.nonzero().squeeze(1)
        place = short.cumsum(0) - 1
        return Edges(
            self.source[kept],
            self.target[kept],
            place[self.reverse[kept]],
            self.distances.index_select(0, kept),
            self.directions.index_select(0, kept),
        )


class EdgePairs(NamedTuple):
    """Ordered pairs of different edges a, b into the same atom.

    Read as they are, they are the one-hop angles j → i ← j', with b = ji and a = j'i. With b turned
    round they are the two-hop angles k → j → i of a = kj and reverse[b] = ji. An edge and another
    image of it are different edges, so i and k may be images of one atom, never the same one.
    """

    first: Int[Tensor, " pairs"]
    """Edge a, from which a message comes."""
    second: Int[Tensor, " pairs"]
    """Edge b."""

    @classmethod
    def from_edges(cls, edges: Edges, atoms: int) -> "EdgePairs":
        """Return every pair, for edges in any order."""
        order = torch.argsort(edges.target, stable=True)
        counts = torch.bincount(edges.target, minlength=atoms)
        starts = counts.cumsum(0) - counts
        rows, second = ragged(starts[edges.target], counts[edges.target])
        first = order[rows]
        different = first != second
        return cls(first[different], second[different])
