"""Frames as flat tensors on one device, and batches of graphs cut from them by indexing."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from ase.geometry import complete_cell
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lkm_calc import Graph
from lkm_calc.neighbours import EdgeList
from lkm_calc.scatter import ragged

from .edges import edges_of
from .frames import MIN_DISTANCE, DataError, Frames


class Totals(NamedTuple):
    """What the means of a loss are taken over: a whole batch, of which a piece may be at hand.

    The losses of pieces, each divided by these, add up to the loss of the batch, and so do their
    gradients, whichever process computes them.
    """

    graphs: int
    atoms: int
    stresses: int
    """Structures with a stress label."""


class Batch(NamedTuple):
    """Structures with their labels."""

    graph: Graph
    energies: Float[Tensor, " graphs"]
    """eV, or the property that is learnt in its unit."""
    forces: Float[Tensor, "atoms 3"] | None
    """eV/Å; None where the set has none."""
    stress: Float[Tensor, "graphs 3 3"] | None
    """eV/Å³, NaN for a structure without; None where the set has none."""

    def totals(self) -> Totals:
        """Return the counts of a batch that is all at hand."""
        labelled = 0 if self.stress is None else int(self.stress.isfinite().all((1, 2)).sum())
        return Totals(self.graph.n_graphs, len(self.graph.numbers), labelled)


class GraphFrames:
    """Labelled structures with their edges, flat on one device; a batch is an index operation.

    Args:
        frames: Structures and labels, eV and Å.
        cutoff: Radius in Å of the neighbour lists, built once here.
        device: Where everything is kept.
    """

    def __init__(self, frames: Frames, cutoff: float, device: torch.device) -> None:
        cells = None if frames.cells is None else np.stack([*map(complete_cell, frames.cells)])
        lists = _neighbour_lists(frames, cutoff)
        edges = np.array([edges.edge_index.shape[1] for edges in lists])
        self.device = device
        self.energy_unit = frames.energy_unit
        self.numbers = self._put(frames.numbers)
        self.positions = self._put(frames.positions)
        self.energies = self._put(frames.energies)
        self.forces = None if frames.forces is None else self._put(frames.forces)
        stress = frames.usable_stress
        self.stress = None if stress is None else self._put(stress)
        # Within their frame; offsets are added for each batch.
        self.edge_index = self._put(np.concatenate([e.edge_index for e in lists], axis=1))
        self.reverse = self._put(np.concatenate([e.reverse for e in lists]))
        self.cells = self.shifts = None
        if cells is not None:
            self.cells = self._put(cells)
            self.shifts = self._put(np.concatenate([e.shifts for e in lists]).astype(np.float64))
        self.atom_starts = self._put(frames.starts[:-1])
        self.edge_starts = self._put(np.cumsum(edges) - edges)
        self.counts = self._put(np.stack([frames.sizes, edges], axis=1))
        # On the CPU, where the sizes of a batch are needed before it is cut.
        self.n_atoms, self.n_edges = torch.from_numpy(frames.sizes), torch.from_numpy(edges)
        self.n_stresses = torch.zeros(len(frames), dtype=torch.int64)
        if stress is not None:
            self.n_stresses = torch.from_numpy(np.isfinite(stress).all((1, 2)) * 1)

    def __len__(self) -> int:
        return len(self.energies)

    def _put(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def totals(self, indices: Int[Tensor, " batch"]) -> Totals:
        """Return the counts of a batch."""
        atoms, stresses = (int(n[indices].sum()) for n in (self.n_atoms, self.n_stresses))
        return Totals(len(indices), atoms, stresses)

    def batch(self, indices: Int[Tensor, " batch"]) -> Batch:
        """Return these frames as one graph, with their labels; indices on the CPU."""
        all_atoms, all_edges = (int(n[indices].sum()) for n in (self.n_atoms, self.n_edges))
        indices = indices.to(self.device)
        n_atoms, n_edges = self.counts[indices].unbind(1)
        atoms, graph_index = ragged(self.atom_starts[indices], n_atoms, all_atoms)
        edges, edge_graph = ragged(self.edge_starts[indices], n_edges, all_edges)
        first_atom = n_atoms.cumsum(0) - n_atoms
        first_edge = n_edges.cumsum(0) - n_edges
        graph = Graph(
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            edge_index=self.edge_index[:, edges] + first_atom[edge_graph],
            reverse=self.reverse[edges] + first_edge[edge_graph],
            graph_index=graph_index,
            n_graphs=len(indices),
            shifts=None if self.shifts is None else self.shifts[edges],
            cell=None if self.cells is None else self.cells[indices],
        )
        return Batch(
            graph,
            self.energies[indices],
            None if self.forces is None else self.forces[atoms],
            None if self.stress is None else self.stress[indices],
        )

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the indices of consecutive batches."""
        yield from torch.arange(len(self)).split(batch_size)


def _neighbour_lists(frames: Frames, cutoff: float) -> list[EdgeList]:
    """Return the neighbour list of every frame.

    Raises:
        DataError: Atoms of a frame, images counted, nearly coincide, or are too far apart for a
            search.
    """
    lists = []
    for f in range(len(frames)):
        try:
            edges, vectors = edges_of(frames, f, cutoff)
        except ValueError as error:
            raise DataError(f"Frame {f} of those chosen: {error}") from error
        if len(vectors) and (vectors**2).sum(1).min() < MIN_DISTANCE**2:
            raise DataError(
                f"Frame {f} of those chosen: two atoms, or an atom and an image of another, are "
                f"closer than {MIN_DISTANCE} Å. Remove the frame, or correct its cell."
            )
        lists.append(edges)
    return lists


def epoch_order(n_frames: int, seed: int, epoch: int) -> Int[Tensor, " frames"]:
    """Return the order of the frames in an epoch: a function of seed and epoch alone.

    Nothing about it has to be saved for a run to resume where it stopped.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n_frames, generator=generator)
