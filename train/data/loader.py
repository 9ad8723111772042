"""Frames as flat tensors on one device, and batches of graphs selected by indexing."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.geometry import complete_cell
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lkm_calc import EnergyModel, Graph
from lkm_calc.compile import Capacity
from lkm_calc.graph import EdgeList, LocalIndices, count, ragged

from .edges import edges_of
from .frames import MIN_DISTANCE, DataError, Frames

FRAMES_AT_ONCE = 256
"""Number of frames whose local edges are computed together."""


class Totals(NamedTuple):
    """Denominators of the means in the loss, for a whole batch.

    If a batch is computed in parts, or by several processes, the losses and gradients of the parts,
    divided by these numbers, add up to those of the batch.
    """

    graphs: int
    atoms: int
    stresses: int
    """Structures with a stress label."""
    forces: int
    """Atoms with a force label."""


class Batch(NamedTuple):
    """Structures with their labels."""

    graph: Graph
    energies: Float[Tensor, " graphs"]
    """In eV, or the target property in its unit."""
    forces: Float[Tensor, "atoms 3"] | None
    """In eV/Å, NaN for structures without; None if the data set has none."""
    stress: Float[Tensor, "graphs 3 3"] | None
    """In eV/Å³, NaN for structures without; None if the data set has none."""
    sizes: Int[Tensor, " graphs"]
    """Number of atoms of each structure."""
    atoms: int
    """Total number of atoms. A padded graph has more atoms and structures than labels."""
    weights: Float[Tensor, " graphs"] | None = None
    """Weight of each structure in the loss; None if all are 1."""
    counts: Float[Tensor, "2"] | None = None
    """Stresses and forces of the Totals, at least 1, as what a captured or compiled step may be
    given anew; None where all structures of the set have the same labels, and Totals will do."""

    def totals(self) -> Totals:
        """Return the counts of a batch that is computed as a whole."""
        stresses = 0 if self.stress is None else int(self.stress.isfinite().all((1, 2)).sum())
        forces = 0 if self.forces is None else int(self.forces.isfinite().all(1).sum())
        return Totals(len(self.energies), self.atoms, stresses, forces)

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in a fixed order."""
        labels = [value for value in self[1:] if isinstance(value, Tensor)]
        return [*self.graph.tensors().values(), *labels]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Batch":
        """Return the batch with the given tensors, in the order of :meth:`tensors`."""
        new = iter(tensors)
        graph = self.graph.with_tensors({name: next(new) for name in self.graph.tensors()})
        labels: dict[str, Any] = {
            name: next(new) for name, value in self._asdict().items() if isinstance(value, Tensor)
        }
        return self._replace(graph=graph, **labels)


class Rows:
    """Rows of a flat tensor that belong to each frame.

    Args:
        counts: (frames) number of rows of each frame.
        device: Device of the flat tensor.
    """

    def __init__(self, counts: NDArray[np.integer], device: torch.device) -> None:
        # Also on the CPU, where the sizes of a batch are needed beforehand.
        self.counts = torch.from_numpy(counts.astype(np.int64))
        self.on_device = torch.stack([self.counts.cumsum(0) - self.counts, self.counts]).to(device)

    def of(self, frames: Tensor, frames_on_device: Tensor) -> "ChosenRows":
        """Return the rows of some frames, without synchronising with a GPU."""
        starts, counts = self.on_device[:, frames_on_device].unbind(0)
        rows, frame = ragged(starts, counts, int(self.counts[frames].sum()))
        return ChosenRows(rows, frame, counts.cumsum(0) - counts)


class ChosenRows(NamedTuple):
    """Rows of selected frames, frame by frame."""

    rows: Int[Tensor, " rows"]
    frame: Int[Tensor, " rows"]
    """Index of the selected frame to which each row belongs."""
    firsts: Int[Tensor, " frames"]
    """Position of the first row of each frame."""

    def count_on(self, places: Int[Tensor, "..."], of: "ChosenRows") -> Int[Tensor, "..."]:
        """Convert indices within frames into indices among all rows of ``of``."""
        return places + of.firsts[self.frame]


class GraphFrames:
    """Labelled structures with their edges in flat tensors on one device.

    Edges and the index sets that a model derives from them are computed once. Creating a batch
    requires only indexing and no synchronisation with a GPU.

    Args:
        frames: Structures and labels, in eV and Å.
        model: Model whose cutoff and index sets are used.
        device: Device of all tensors.
        weights: (frames) weights in the loss; None if all are 1.
    """

    def __init__(
        self,
        frames: Frames,
        model: EnergyModel,
        device: torch.device,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        cells = None if frames.cells is None else np.stack([*map(complete_cell, frames.cells)])
        lists = _neighbour_lists(frames, model.cutoff)
        self.device, self.cutoff = device, model.cutoff
        self.energy_unit = frames.energy_unit
        self.numbers = self._put(frames.numbers)
        self.positions = self._put(frames.positions)
        self.energies = self._put(frames.energies)
        self.weights = None if weights is None else self._put(weights)
        has_forces = frames.has_forces
        self.forces = None
        if frames.forces is not None and has_forces.any():
            self.forces = self._put(frames.forces)
        self.n_forces = torch.from_numpy(np.where(has_forces, frames.sizes, 0))
        stress = frames.usable_stress
        self.stress = None if stress is None else self._put(stress)
        self.n_stresses = torch.zeros(len(frames), dtype=torch.int64)
        if stress is not None:
            self.n_stresses = torch.from_numpy(np.isfinite(stress).all((1, 2)) * 1)
        with_stress = self.n_stresses.numpy() > 0
        self.uniform = all(has.all() or not has.any() for has in (has_forces, with_stress))
        # Indices within each frame; offsets are added for each batch.
        self.edge_index = self._put(np.concatenate([e.edge_index for e in lists], axis=1))
        self.reverse = self._put(np.concatenate([e.reverse for e in lists]))
        self.slot = self._put(np.concatenate([e.slot for e in lists]))
        self.cells = self.shifts = None
        if cells is not None:
            self.cells = self._put(cells)
            self.shifts = self._put(np.concatenate([e.shifts for e in lists]).astype(np.float64))
        self.atoms = Rows(frames.sizes, device)
        self.edges = Rows(np.array([e.edge_index.shape[1] for e in lists]), device)
        self.max_neighbours = torch.tensor([e.max_neighbours for e in lists], dtype=torch.int64)
        self.local: LocalIndices | None = None
        self.local_edges = self.pairs = self.edges  # for models without local edges
        self._find_local(model)

    def _find_local(self, model: EnergyModel) -> None:
        """Store the local edges and pairs of each frame, if the model needs them."""
        found, counts = [], []
        for indices in self.in_order(FRAMES_AT_ONCE):
            graph = self.batch(indices).graph
            local = model.prepare(graph).local
            if local is None:
                return
            frames = len(indices)
            edges = self.edges.of(indices, indices.to(self.device))
            frame = edges.frame[local.edges]
            pair_frame = frame[local.first]
            n_local, n_pairs = count(frame, frames), count(pair_frame, frames)
            firsts = n_local.cumsum(0) - n_local
            found.append(
                LocalIndices(
                    local.edges - edges.firsts[frame],
                    local.reverse - firsts[frame],
                    local.first - firsts[pair_frame],
                    local.second - firsts[pair_frame],
                )
            )
            counts.append(torch.stack([n_local, n_pairs]).cpu())
        self.local = LocalIndices(*map(torch.cat, zip(*found, strict=True)))
        n_local, n_pairs = torch.cat(counts, dim=1).numpy()
        self.local_edges, self.pairs = Rows(n_local, self.device), Rows(n_pairs, self.device)

    def __len__(self) -> int:
        return len(self.energies)

    def _put(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def totals(self, indices: Int[Tensor, " batch"]) -> Totals:
        """Return the counts of a batch."""
        numbers = self.atoms.counts, self.n_stresses, self.n_forces
        return Totals(len(indices), *(int(n[indices].sum()) for n in numbers))

    def counts(self, totals: Totals) -> Float[Tensor, "2"] | None:
        """Return the ``counts`` of a batch with these totals, without GPU synchronisation."""
        if self.uniform:
            return None
        counts = torch.tensor([totals.stresses, totals.forces], dtype=torch.float64)
        return _sent(counts.clamp_min(1), self.device)

    def capacity(self, indices: Int[Tensor, " batch"]) -> Capacity:
        """Return a padded size sufficient for any batch with the same number of atoms.

        It is the same for all batches of one size if all frames are of one molecule.
        """
        size = len(indices)
        edges, local, pairs = (
            size * int(rows.counts.max()) for rows in (self.edges, self.local_edges, self.pairs)
        )
        if self.local is None:
            local = pairs = 0
        return Capacity(
            int(self.atoms.counts[indices].sum()) + 2,
            2 + edges,
            max(1, int(self.max_neighbours.max())),
            2 + local,
            pairs,
        )

    def batch(self, indices: Int[Tensor, " batch"]) -> Batch:
        """Return frames as a batch, given their indices on the CPU."""
        here = _sent(indices, self.device)
        atoms, edges = self.atoms.of(indices, here), self.edges.of(indices, here)
        local = None
        if self.local is not None:
            local_edges, pairs = self.local_edges.of(indices, here), self.pairs.of(indices, here)
            local = LocalIndices(
                local_edges.count_on(self.local.edges[local_edges.rows], edges),
                local_edges.count_on(self.local.reverse[local_edges.rows], local_edges),
                pairs.count_on(self.local.first[pairs.rows], local_edges),
                pairs.count_on(self.local.second[pairs.rows], local_edges),
            )
        graph = Graph(
            numbers=self.numbers[atoms.rows],
            positions=self.positions[atoms.rows],
            edge_index=edges.count_on(self.edge_index[:, edges.rows], atoms),
            reverse=edges.count_on(self.reverse[edges.rows], edges),
            graph_index=atoms.frame,
            n_graphs=len(indices),
            shifts=None if self.shifts is None else self.shifts[edges.rows],
            cell=None if self.cells is None else self.cells[here],
            slot=self.slot[edges.rows],
            max_neighbours=int(self.max_neighbours[indices].max()),
            local=local,
        )
        return Batch(
            graph,
            self.energies[here],
            None if self.forces is None else self.forces[atoms.rows],
            None if self.stress is None else self.stress[here],
            self.atoms.on_device[1, here],
            len(atoms.rows),
            None if self.weights is None else self.weights[here],
        )

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the indices of consecutive batches."""
        yield from torch.arange(len(self)).split(batch_size)


def _neighbour_lists(frames: Frames, cutoff: float) -> list[EdgeList]:
    """Return the neighbour list of every frame.

    Raises:
        DataError: Atoms of a frame or their images nearly coincide, or are too far apart for the
            neighbour search.
    """
    lists = []
    for f in range(len(frames)):
        try:
            edges, vectors = edges_of(frames, f, cutoff)
        except ValueError as error:
            raise DataError(f"Selected frame {f}: {error}") from error
        if len(vectors) and (vectors**2).sum(1).min() < MIN_DISTANCE**2:
            raise DataError(
                f"Selected frame {f}: two atoms, or an atom and an image of another, are closer "
                f"than {MIN_DISTANCE} Å. Remove the frame, or correct its cell."
            )
        lists.append(edges)
    return lists


def _sent(indices: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device asynchronously."""
    if device.type == "cuda":
        indices = indices.pin_memory()
    return indices.to(device, non_blocking=True)


def epoch_order(n_frames: int, seed: int, epoch: int) -> Int[Tensor, " frames"]:
    """Return the order of the frames in an epoch, a function of seed and epoch only.

    It need not be saved to resume a run.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n_frames, generator=generator)
