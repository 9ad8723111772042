"""The input of every model: atoms, their positions and the edges between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import ase
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..runtime import own_settings
from .neighbours import Search, neighbour_list


class LocalIndices(NamedTuple):
    """The local edges of a graph and all ordered pairs of distinct local edges into an atom.

    The pairs (a, b) are the one-hop angles j → i ← j' with a = j'i and b = ji. With b reversed they
    are the two-hop angles k → j → i with a = kj and reverse[b] = ji. Different periodic images of
    an edge are distinct edges, so i and k may be images of one atom but never the same image.
    """

    edges: Int[Tensor, " local"]
    """Indices of the local edges among the edges of the graph."""
    reverse: Int[Tensor, " local"]
    """Index of the reverse edge among the local edges."""
    first: Int[Tensor, " pairs"]
    """Local index of edge a, the sender of a message."""
    second: Int[Tensor, " pairs"]
    """Local index of edge b."""


@dataclass(frozen=True, eq=False)
class Graph:
    """One structure or a batch of structures.

    It contains all edges within a cutoff, which must be at least that of the model, in both
    directions.
    """

    numbers: Int[Tensor, " atoms"]
    """Atomic numbers."""
    positions: Float[Tensor, "atoms 3"]
    """Positions in Å, float64; models cast the differences, not the coordinates."""
    edge_index: Int[Tensor, "2 edges"]
    """Row 0 the source j, row 1 the target i."""
    reverse: Int[Tensor, " edges"]
    """Index of the reverse edge i → j of each edge j → i, for the same periodic image."""
    graph_index: Int[Tensor, " atoms"]
    """The structure to which each atom belongs, 0 .. n_graphs-1, ascending."""
    n_graphs: int
    """Number of structures."""
    shifts: Float[Tensor, "edges 3"] | None = None
    """Integer multiples of cell vectors added to each edge vector; None if not periodic."""
    cell: Float[Tensor, "graphs 3 3"] | None = None
    """Cell vectors as rows, in Å; None if not periodic."""
    slot: Int[Tensor, " edges"] | None = None
    """Index of each edge among those into the same atom, from 0; recomputed if None, which it must
    be after edges are changed."""
    max_neighbours: int | None = None
    """Largest number of edges into an atom, or an upper bound; likewise."""
    local: LocalIndices | None = None
    """Set by :meth:`EnergyModel.prepare` for models that need it."""

    @classmethod
    @own_settings
    def from_atoms(
        cls,
        atoms: ase.Atoms,
        cutoff: float,
        device: torch.device | str = "cpu",
        search: Search = neighbour_list,
    ) -> "Graph":
        """Build the graph of one structure with a neighbour list of ``cutoff`` Å.

        Args:
            atoms: The structure.
            cutoff: Cutoff in Å.
            device: Device of the graph.
            search: Neighbour search, for example a :class:`lkm_calc.graph.VerletList`.

        Raises:
            ValueError: There are no atoms, a position or the cell is not finite, two atoms have
                the same position, or a periodic direction has no cell vector.
        """
        if len(atoms) == 0:
            raise ValueError("The structure has no atoms; a graph needs at least one.")
        # Readers may produce float32, integers, or another byte order or memory layout.
        positions = np.array(atoms.positions, dtype=np.float64, order="C")
        cell = np.asarray(atoms.cell.complete())
        for name, array in (("positions", positions), ("cell", cell)):
            if not np.isfinite(array).all():
                rows = np.unique(np.argwhere(~np.isfinite(array))[:, 0])
                raise ValueError(
                    f"{name} is not finite in row(s) {rows[:5].tolist()}: a diverged simulation or "
                    "a damaged file. Go back to the last valid structure."
                )
        missing = atoms.pbc & ~atoms.cell.any(1)
        if missing.any():
            raise ValueError(
                f"pbc is {atoms.pbc.tolist()} but cell vector(s) {np.flatnonzero(missing).tolist()}"
                " are zero. Set atoms.cell, or atoms.pbc = False for a molecule."
            )
        edges = search(positions, cutoff, cell, atoms.pbc)
        periodic = bool(atoms.pbc.any())
        graph = cls(
            numbers=torch.from_numpy(atoms.get_atomic_numbers().astype(np.int64)),
            positions=torch.from_numpy(positions),
            edge_index=torch.from_numpy(edges.edge_index),
            reverse=torch.from_numpy(edges.reverse),
            graph_index=torch.zeros(len(atoms), dtype=torch.int64),
            n_graphs=1,
            shifts=torch.from_numpy(edges.shifts.astype(np.float64)) if periodic else None,
            cell=torch.from_numpy(cell).unsqueeze(0) if periodic else None,
            slot=torch.from_numpy(edges.slot),
            max_neighbours=edges.max_neighbours,
        )
        if edges.shortest < 1e-6:
            pair = graph.edge_index[:, graph.edge_vectors().norm(dim=1).argmin()].tolist()
            raise ValueError(
                f"Atoms {pair[0]} and {pair[1]} have the same position (closer than 1e-6 Å). "
                "Remove the duplicate, or check the cell if one is an image of the other."
            )
        return graph.to(device)

    @classmethod
    def collate(cls, graphs: Sequence["Graph"]) -> "Graph":
        """Join graphs into a batch, in the given order.

        Local indices set by a model are dropped.

        Raises:
            ValueError: The sequence is empty.
        """
        if not graphs:
            raise ValueError("collate needs at least one graph.")
        periodic = any(g.cell is not None for g in graphs)
        atoms_before = np.cumsum([0] + [len(g.numbers) for g in graphs])
        edges_before = np.cumsum([0] + [g.edge_index.shape[1] for g in graphs])
        graphs_before = np.cumsum([0] + [g.n_graphs for g in graphs])
        bounds = [g.max_neighbours for g in graphs if g.max_neighbours is not None]
        slots = [g.slot for g in graphs if g.slot is not None]
        return cls(
            numbers=torch.cat([g.numbers for g in graphs]),
            positions=torch.cat([g.positions for g in graphs]),
            edge_index=torch.cat(
                [g.edge_index + int(n) for g, n in zip(graphs, atoms_before, strict=False)], dim=1
            ),
            reverse=torch.cat(
                [g.reverse + int(n) for g, n in zip(graphs, edges_before, strict=False)]
            ),
            graph_index=torch.cat(
                [g.graph_index + int(n) for g, n in zip(graphs, graphs_before, strict=False)]
            ),
            n_graphs=int(graphs_before[-1]),
            shifts=torch.cat([g._periodic_parts()[0] for g in graphs]) if periodic else None,
            cell=torch.cat([g._periodic_parts()[1] for g in graphs]) if periodic else None,
            slot=torch.cat(slots) if len(slots) == len(graphs) else None,
            max_neighbours=max(bounds) if len(bounds) == len(graphs) else None,
        )

    def _periodic_parts(self) -> tuple[Tensor, Tensor]:
        """Return shifts and cells; zero shifts and unit cells if not periodic."""
        if self.shifts is not None and self.cell is not None:
            return self.shifts, self.cell
        unit = torch.eye(3, dtype=self.positions.dtype, device=self.positions.device)
        shifts = self.positions.new_zeros(self.edge_index.shape[1], 3)
        return shifts, unit.expand(self.n_graphs, 3, 3)

    def edge_vectors(self) -> Float[Tensor, "edges 3"]:
        """Return the vector from source to target of each edge, in Å."""
        source, target = self.edge_index
        vectors = self.positions.index_select(0, target) - self.positions.index_select(0, source)
        if self.shifts is not None and self.cell is not None:
            cells = self.cell.index_select(0, self.graph_index.index_select(0, source))
            vectors = vectors + torch.einsum("ea,eab->eb", self.shifts, cells)
        return vectors

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the graph by name."""
        found = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        if self.local is not None:
            found |= {f"local.{name}": index for name, index in self.local._asdict().items()}
        return found

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Graph":
        """Return the graph with the given tensors, named as in :meth:`tensors`."""
        own: dict[str, Any] = {k: v for k, v in tensors.items() if not k.startswith("local.")}
        if self.local is not None:
            own["local"] = LocalIndices(*(tensors[f"local.{name}"] for name in self.local._fields))
        return replace(self, **own)

    def outside_inference(self) -> "Graph":
        """Return the graph with copies of inference-mode tensors, which autograd rejects."""
        if not (self.positions.is_inference() or self.edge_index.is_inference()):
            return self
        return self.with_tensors({name: t.clone() for name, t in self.tensors().items()})

    def to(self, device: torch.device | str) -> "Graph":
        """Return the graph with every tensor on ``device``."""
        return self.with_tensors({name: t.to(device) for name, t in self.tensors().items()})
