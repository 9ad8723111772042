"""Local edges and pairs of edges that share an atom: the index sets of angles."""

import torch
from jaxtyping import Int
from torch import Tensor

from .graph import Graph, LocalIndices
from .scatter import count, ragged


def local_indices(graph: Graph, radius: float) -> LocalIndices:
    """Return the edges shorter than ``radius`` Å and their pairs."""
    with torch.no_grad():
        short = graph.edge_vectors().square().sum(1) < radius**2
        # Keep both directions or none, even if the two lengths differ in the last bit.
        short = short & short[graph.reverse]
        edges = short.nonzero().squeeze(1)
        reverse = (short.cumsum(0) - 1)[graph.reverse[edges]]
        first, second = edge_pairs(graph.edge_index[1][edges], len(graph.numbers))
    return LocalIndices(edges, reverse, first, second)


def edge_pairs(
    target: Int[Tensor, " edges"], atoms: int
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Return all ordered pairs of distinct edges into the same atom, for edges in any order."""
    order = torch.argsort(target, stable=True)
    counts = count(target, atoms)
    starts = counts.cumsum(0) - counts
    rows, second = ragged(starts[target], counts[target])
    first = order[rows]
    different = first != second
    return first[different], second[different]
