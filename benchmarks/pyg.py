"""torch-geometric's DimeNet++ on a graph of lkm-calc, as a reference with the same edges."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import ase
import torch
from ase.calculators.calculator import Calculator, all_changes
from torch import Tensor
from torch_geometric.nn.models import DimeNetPlusPlus

from lkm_calc import Graph
from lkm_calc.graph import count, ragged, sum_to


class EnergyForces(NamedTuple):
    energy: Tensor
    forces: Tensor


def dimenetpp(hidden: int = 128) -> DimeNetPlusPlus:
    """Return their model in the published size or narrower, its last weights not zero."""
    return DimeNetPlusPlus(
        hidden_channels=hidden,
        out_channels=1,
        num_blocks=4,
        int_emb_size=64,
        basis_emb_size=8,
        out_emb_channels=256,
        num_spherical=7,
        num_radial=6,
        cutoff=5.0,
        output_initializer="glorot_orthogonal",
    )


def capped(graph: Graph, neighbours: int) -> Graph:
    """Return the graph with so many edges into each atom at most, as their models have it.

    Which of the edges are left is a matter of their order; that of a pair may go one way only.
    """
    if graph.slot is None:
        raise ValueError("The graph has no slots of edges.")
    kept = graph.slot < neighbours
    return replace(
        graph,
        edge_index=graph.edge_index[:, kept],
        shifts=None if graph.shifts is None else graph.shifts[kept],
        slot=None,
        max_neighbours=None,
    )


def triplets(edge_index: Tensor, atoms: int) -> tuple[Tensor, Tensor]:
    """Return the edges kj and ji of every k → j → i with k ≠ i, as their function of this name."""
    source, target = edge_index
    order = torch.argsort(target, stable=True)
    counts = count(target, atoms)
    starts = counts.cumsum(0) - counts
    rows, ji = ragged(starts[source], counts[source])
    kj = order[rows]
    different = source[kj] != target[ji]
    return kj[different], ji[different]


class PyGCalculator(Calculator):
    """Their DimeNet++ on our neighbour lists.

    Args:
        dtype: Of the weights, drawn from seed 0.
        neighbours: Largest number an atom, 32 in their code; None for all.
        device: Where it computes.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        neighbours: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = dimenetpp().to(device, dtype).eval().requires_grad_(False)
        self.neighbours = neighbours
        self.device = torch.device(device)

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        graph = Graph.from_atoms(self.atoms, 5.0)
        if self.neighbours is not None:
            graph = capped(graph, self.neighbours)
        out = energy_and_forces(self.model, graph.to(self.device))
        self.results = {"energy": out.energy.item(), "forces": out.forces.cpu().numpy()}


def energy_and_forces(
    model: DimeNetPlusPlus, graph: Graph, create_graph: bool = False
) -> EnergyForces:
    """Run their layers one after the other as their forward does, and differentiate.

    Their forward itself needs torch-cluster and torch-sparse for edges and triplets.

    Returns:
        The energy of each structure, and the forces.
    """
    dtype = next(model.parameters()).dtype
    positions = graph.positions.to(dtype).requires_grad_()
    j, i = graph.edge_index
    kj, ji = triplets(graph.edge_index, len(positions))
    vectors = replace(graph, positions=positions).edge_vectors().to(dtype)
    distances = vectors.square().sum(-1).sqrt()
    into, out_of = vectors[kj], vectors[ji]
    sine = torch.cross(into, out_of, dim=1).norm(dim=-1)
    angles = torch.atan2(sine, (into * out_of).sum(-1))
    rbf, sbf = model.rbf(distances), model.sbf(distances, angles, kj)
    x = model.emb(graph.numbers, rbf, i, j)
    values = model.output_blocks[0](x, rbf, i, num_nodes=len(positions))
    blocks = zip(model.interaction_blocks, model.output_blocks[1:], strict=True)
    for interaction, output in blocks:
        x = interaction(x, rbf, sbf, kj, ji)
        values = values + output(x, rbf, i, num_nodes=len(positions))
    energy = sum_to(values.squeeze(1), graph.graph_index, graph.n_graphs)
    gradient = torch.autograd.grad(energy.sum(), positions, create_graph=create_graph)[0]
    return EnergyForces(energy if create_graph else energy.detach(), -gradient)
