"""Frames as tensors on the device, and batches of them as graphs."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lkm_calc import Graph
from lkm_calc.neighbours import neighbour_list
from lkm_calc.scatter import ragged

from .frames import Frames


class GraphFrames:
    """Labelled structures with their edges, flat on one device; a batch is an index operation.

    Args:
        frames: Structures and labels, eV and Å.
        cutoff: Radius in Å of the neighbour lists, built once here.
        device: Where everything is kept.
    """

    def __init__(self, frames: Frames, cutoff: float, device: torch.device) -> None:
        starts = frames.starts
        lists = [
            neighbour_list(frames.positions[first:last], cutoff) for first, last in pairwise(starts)
        ]
        edges = np.array([edges.edge_index.shape[1] for edges in lists])
        self.device = device
        self.numbers = self._put(frames.numbers)
        self.positions = self._put(frames.positions)
        self.forces = self._put(frames.forces)
        self.energies = self._put(frames.energies)
        # Within their frame; offsets are added for each batch.
        self.edge_index = self._put(np.concatenate([e.edge_index for e in lists], axis=1))
        self.reverse = self._put(np.concatenate([e.reverse for e in lists]))
        self.atom_starts = self._put(starts[:-1])
        self.n_atoms = self._put(frames.sizes)
        self.edge_starts = self._put(np.cumsum(edges) - edges)
        self.n_edges = self._put(edges)

    def __len__(self) -> int:
        return len(self.energies)

    def _put(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def batch(
        self, indices: Int[Tensor, " batch"]
    ) -> tuple[Graph, Float[Tensor, " batch"], Float[Tensor, "atoms 3"]]:
        """Return the graph of these frames, their energies (eV) and their forces (eV/Å)."""
        n_atoms, n_edges = self.n_atoms[indices], self.n_edges[indices]
        atoms, graph_index = ragged(self.atom_starts[indices], n_atoms)
        edges, edge_graph = ragged(self.edge_starts[indices], n_edges)
        first_atom = n_atoms.cumsum(0) - n_atoms
        first_edge = n_edges.cumsum(0) - n_edges
        graph = Graph(
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            edge_index=self.edge_index[:, edges] + first_atom[edge_graph],
            reverse=self.reverse[edges] + first_edge[edge_graph],
            graph_index=graph_index,
            n_graphs=len(indices),
        )
        return graph, self.energies[indices], self.forces[atoms]

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the indices of consecutive batches."""
        yield from torch.arange(len(self), device=self.device).split(batch_size)


def epoch_order(n_frames: int, seed: int, epoch: int) -> Int[Tensor, " frames"]:
    """Return the order of the frames in an epoch: a function of seed and epoch alone.

    Nothing about it has to be saved for a run to resume where it stopped.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n_frames, generator=generator)
