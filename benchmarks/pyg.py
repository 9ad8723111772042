"""torch-geometric's DimeNet++ on a graph of ours: what others compute, with the same edges."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.nn.models import DimeNetPlusPlus

from lkm_calc import Graph
from lkm_calc.triplets import edge_pairs


class EnergyForces(NamedTuple):
    energy: Tensor
    forces: Tensor


def dimenetpp() -> DimeNetPlusPlus:
    """Return their model in the published size, its last weights not zero."""
    return DimeNetPlusPlus(
        hidden_channels=128,
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


def energy_and_forces(model: DimeNetPlusPlus, graph: Graph) -> EnergyForces:
    """Run their layers one after the other as their forward does, and differentiate.

    Their forward itself needs torch-cluster and torch-sparse for edges and triplets.
    """
    dtype = next(model.parameters()).dtype
    positions = graph.positions.to(dtype).requires_grad_()
    j, i = graph.edge_index
    kj, turned = edge_pairs(i, len(positions))
    ji = graph.reverse[turned]
    distances = (positions[i] - positions[j]).square().sum(-1).sqrt()
    into, out_of = positions[i[kj]] - positions[j[kj]], positions[i[ji]] - positions[j[ji]]
    sine = torch.cross(into, out_of, dim=1).norm(dim=-1)
    angles = torch.atan2(sine, (into * out_of).sum(-1))
    rbf, sbf = model.rbf(distances), model.sbf(distances, angles, kj)
    x = model.emb(graph.numbers, rbf, i, j)
    energy = model.output_blocks[0](x, rbf, i, num_nodes=len(positions))
    blocks = zip(model.interaction_blocks, model.output_blocks[1:], strict=True)
    for interaction, output in blocks:
        x = interaction(x, rbf, sbf, kj, ji)
        energy = energy + output(x, rbf, i, num_nodes=len(positions))
    total = energy.sum()
    return EnergyForces(total.detach(), -torch.autograd.grad(total, positions)[0])
