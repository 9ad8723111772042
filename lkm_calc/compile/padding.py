"""Graphs of fixed shapes: padded with dummy atoms and edges up to a capacity.

Compiled code and CUDA graphs need the same shapes at every call, while the number of edges changes
as atoms move. The added edges connect two dummy atoms of a separate structure, which are farther
apart than the cut-off, where every message vanishes with its derivatives. Energies and forces of
the real structures are exactly unchanged.
"""

import math
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..graph import Graph, LocalIndices
from ..models import Prediction
from ..potential import EnergyForces


class Capacity(NamedTuple):
    """Numbers of rows of a padded graph."""

    atoms: int
    edges: int
    max_neighbours: int
    local: int = 0
    """Number of local edges in :class:`lkm_calc.graph.LocalIndices`, for models that use them."""
    pairs: int = 0

    @classmethod
    def of(cls, graph: Graph, spare: float = 0.0) -> "Capacity":
        """Return the smallest capacity for a prepared graph, plus a fraction of spare rows.

        Edges and local edges come in pairs, and at least one dummy pair of each is always added.
        """
        local = graph.local
        counts = [graph.edge_index.shape[1], graph.max_neighbours or 0]
        counts += [0, 0] if local is None else [len(local.edges), len(local.first)]
        edges, neighbours, shorter, pairs = (n + math.ceil(spare * n) for n in counts)
        return cls(
            len(graph.numbers) + 2,
            2 + edges + edges % 2,
            max(1, neighbours),
            2 + shorter + shorter % 2,
            pairs,
        )

    def holds(self, graph: Graph) -> bool:
        """Return whether a prepared graph can be padded to this capacity."""
        return all(have >= need for have, need in zip(self, Capacity.of(graph), strict=True))

    def fits(self, graph: Graph) -> bool:
        """Return whether a prepared graph has the same number of atoms and can be padded."""
        return self.atoms == len(graph.numbers) + 2 and self.holds(graph)

    def joined(self, other: "Capacity") -> "Capacity":
        """Return the smallest capacity that is sufficient for both."""
        return Capacity(*map(max, self, other))


def pad(graph: Graph, capacity: Capacity, cutoff: float) -> Graph:
    """Return a prepared graph padded to a capacity with one additional dummy structure.

    Args:
        graph: Graph that fits into the capacity.
        capacity: With even numbers of edges and local edges.
        cutoff: Cut-off of the model in Å.

    Raises:
        ValueError: The graph is too large.
    """
    if not capacity.holds(graph):
        raise ValueError(
            f"The graph needs {Capacity.of(graph)}, which exceeds {capacity}. Use a larger one."
        )
    device, atoms, edges = graph.numbers.device, len(graph.numbers), graph.edge_index.shape[1]
    ghosts = capacity.atoms - atoms
    positions = graph.positions.new_zeros(ghosts, 3)
    positions[1::2, 0] = 2 * cutoff
    k = torch.arange(capacity.edges - edges, device=device)
    ends = torch.stack([atoms + k % 2, atoms + 1 - k % 2])
    shifts, cell, local = graph.shifts, graph.cell, graph.local
    if shifts is not None and cell is not None:
        shifts = torch.cat([shifts, shifts.new_zeros(len(k), 3)])
        cell = torch.cat([cell, torch.eye(3, dtype=cell.dtype, device=device).unsqueeze(0)])
    if local is not None:
        n = len(local.edges)
        m = torch.arange(capacity.local - n, device=device)
        p = torch.arange(capacity.pairs - len(local.first), device=device) % len(m)
        added = (edges + m % 2, n + m + 1 - 2 * (m % 2), n + p, n + p)
        local = LocalIndices(*(torch.cat(both) for both in zip(local, added, strict=True)))
    return replace(
        graph,
        numbers=_extended(graph.numbers, ghosts, 0),
        positions=torch.cat([graph.positions, positions]),
        edge_index=torch.cat([graph.edge_index, ends], dim=1),
        reverse=torch.cat([graph.reverse, edges + k + 1 - 2 * (k % 2)]),
        graph_index=_extended(graph.graph_index, ghosts, graph.n_graphs),
        n_graphs=graph.n_graphs + 1,
        shifts=shifts,
        cell=cell,
        slot=None if graph.slot is None else _extended(graph.slot, len(k), 0),
        max_neighbours=capacity.max_neighbours,
        local=local,
    )


def _extended(values: Tensor, rows: int, value: int) -> Tensor:
    return torch.cat([values, values.new_full((rows,), value)])


Output = TypeVar("Output", bound=EnergyForces | Prediction)


def unpad(out: Output, graphs: int, atoms: int) -> Output:
    """Return the results of the first structures, without padding."""
    per_graph, shares = {"energy", "stress"}, out.shares
    if shares is not None:
        shares = shares._replace(values=tuple(layer[:atoms] for layer in shares.values))
    return out._replace(  # type: ignore[return-value]
        **{
            name: value[: graphs if name in per_graph else atoms]
            for name, value in out._asdict().items()
            if isinstance(value, Tensor)
        },
        embeddings=tuple(layer[:atoms] for layer in out.embeddings),
        shares=shares,
    )
