"""Shared code of MXMNet and PAMNet: global and local graph, features of edges and angles.

The global graph contains all pairs within the cutoff. The local graph, used for angles, contains
the pairs within a short cutoff, roughly the bonds; unlike a fixed bond table it lets bonds form and
break smoothly.

Every message of both architectures is multiplied by a bias-free linear function of the edge
features e = σ(W rbf), also bias-free, which vanish at the cutoff with their first and second
derivatives. Energy and forces are therefore continuous where a pair crosses a cutoff. The published
features σ(W rbf + b) do not vanish there, and the energy jumps.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..graph import Graph, local_indices, sum_to
from .arguments import ANY_SIZE
from .basis import BesselBasis, SphericalBesselBasis
from .geometry import legendre, lengths_and_directions
from .layers import MLP, EdgeLinear, dense

silu = nn.functional.silu

LOCAL_CUTOFF = 2.0
"""Default radius of the local graph in Å."""

SIZES = {
    "hidden": ANY_SIZE,
    "num_layers": ANY_SIZE,
    "num_radial": (1, 100),
    "num_spherical": (1, 20),
    "num_spherical_radial": (1, 100),
    "envelope_exponent": (3, 100),
}
"""Smallest and largest value of each size."""


class EdgeFeatures(NamedTuple):
    """Edges of the global or local graph and their features."""

    source: Int[Tensor, " edges"]
    target: Int[Tensor, " edges"]
    e: Float[Tensor, "edges dim"]


class AngleFeatures(NamedTuple):
    """For every angle, the local edge that sends a message and the one that receives it."""

    sender: Int[Tensor, " angles"]
    receiver: Int[Tensor, " angles"]
    features: Float[Tensor, "angles dim"]


class Multiplex(NamedTuple):
    """Global and local graph of a structure, and the angles of the local graph."""

    wide: EdgeFeatures
    """The global graph."""
    local: EdgeFeatures
    one_hop: AngleFeatures
    """Angles j → i ← j': messages from j'i to ji."""
    two_hop: AngleFeatures | None
    """Angles k → j → i: messages from kj to ji; None if not used."""

    def angles(self) -> AngleFeatures:
        """Return the angles of both kinds, concatenated."""
        if self.two_hop is None:
            return self.one_hop
        both = zip(self.one_hop, self.two_hop, strict=True)
        return AngleFeatures(*(torch.cat(parts) for parts in both))


class MultiplexBasis(nn.Module):
    """Features of edges and angles from the radial and spherical bases of DimeNet.

    Args:
        hidden: Width of the features.
        num_radial: Number of radial functions of a distance.
        num_spherical: Number of angular functions, l = 0 .. num_spherical-1.
        num_spherical_radial: Number of radial functions for each of them.
        cutoff: Radius in Å of the global graph.
        local_cutoff: Radius in Å of the local graph.
        envelope_exponent: Exponent p of the cutoff function.
        two_hop: Whether to use two-hop angles.

    Raises:
        ValueError: The local cutoff is not positive or larger than the global one.
    """

    def __init__(
        self,
        hidden: int,
        num_radial: int,
        num_spherical: int,
        num_spherical_radial: int,
        cutoff: float,
        local_cutoff: float,
        envelope_exponent: int,
        two_hop: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(local_cutoff, bool) or not 0 < local_cutoff <= cutoff:
            raise ValueError(
                f"local_cutoff is {local_cutoff}; it must be a positive length in Å, at most the "
                f"cutoff, {cutoff}."
            )
        self.local_cutoff = local_cutoff
        self.num_spherical = num_spherical
        self.radial_wide = BesselBasis(num_radial, cutoff, envelope_exponent)
        # The local bases have a shorter cutoff but the wavelengths of the global basis; with
        # shorter wavelengths, networks overfit.
        self.radial_local = BesselBasis(num_radial, local_cutoff, envelope_exponent, cutoff)
        self.spherical = SphericalBesselBasis(
            num_spherical, num_spherical_radial, local_cutoff, envelope_exponent, cutoff
        )
        self.to_wide = dense(num_radial, hidden, bias=False)
        self.to_local = dense(num_radial, hidden, bias=False)
        functions = num_spherical * num_spherical_radial
        self.to_one_hop = MLP(functions, hidden)
        self.to_two_hop = MLP(functions, hidden) if two_hop else None

    def prepare(self, graph: Graph) -> Graph:
        """Return the graph with its local edges and their pairs."""
        if graph.local is not None:
            return graph
        return replace(graph, local=local_indices(graph, self.local_cutoff))

    def forward(self, graph: Graph, dtype: torch.dtype) -> Multiplex:
        """Return the edges and angles of a prepared graph with their features."""
        indices = graph.local
        if indices is None:
            raise ValueError("The graph has no local edges; call the model's prepare first.")
        source, target = graph.edge_index
        distances, directions = lengths_and_directions(graph.edge_vectors().to(dtype))
        local_distances = distances.index_select(0, indices.edges)
        local_directions = directions.index_select(0, indices.edges)
        a, b = indices.first, indices.second

        # One basis serves both kinds of angle: reversing b changes the sign of the cosine, and the
        # weights can learn the sign in P_l(−x) = (−1)^l P_l(x).
        between = local_directions.index_select(0, a) * local_directions.index_select(0, b)
        angular = legendre(between.sum(1), self.num_spherical)
        radial = self.spherical(local_distances).index_select(0, a)
        sbf = (radial * angular.unsqueeze(2)).flatten(1)
        one_hop = AngleFeatures(a, b, self.to_one_hop(sbf))
        two_hop = None
        if self.to_two_hop is not None:
            two_hop = AngleFeatures(a, indices.reverse[b], self.to_two_hop(sbf))
        e_wide = silu(self.to_wide(self.radial_wide(distances)))
        e_local = silu(self.to_local(self.radial_local(local_distances)))
        return Multiplex(
            EdgeFeatures(source, target, e_wide),
            EdgeFeatures(source[indices.edges], target[indices.edges], e_local),
            one_hop,
            two_hop,
        )


class GlobalMessages(nn.Module):
    """x_i + Σ_j (W e_ij) ⊙ MLP[3d,d]([x_i ‖ x_j ‖ e_ij]) over the global graph."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.message = EdgeLinear(hidden, hidden)
        self.gate = dense(hidden, hidden, bias=False)

    def of_edges(self, e: Float[Tensor, "edges dim"]) -> tuple[Tensor, Tensor]:
        """Return the parts that depend only on the edges, for one or several calls."""
        return self.message.of_edges(e), self.gate(e)

    def forward(
        self,
        x: Float[Tensor, "atoms dim"],
        edges: EdgeFeatures,
        edge_parts: tuple[Tensor, Tensor],
    ) -> Float[Tensor, "atoms dim"]:
        """Return the new features of the atoms, given :meth:`of_edges`."""
        message, gate = edge_parts
        m = silu(self.message.combine(x, message, edges.source, edges.target))
        return x.index_add(0, edges.target, gate * m)


def edge_messages(
    layer: EdgeLinear, x: Float[Tensor, "atoms dim"], edges: EdgeFeatures
) -> Float[Tensor, "edges out"]:
    """Return σ(W [x_i ‖ x_j ‖ e_ij] + b) for every edge j → i."""
    return silu(layer.combine(x, layer.of_edges(edges.e), edges.source, edges.target))


def angle_sum(
    messages: Float[Tensor, "edges dim"],
    angles: AngleFeatures,
    weights: Float[Tensor, "angles dim"],
) -> Float[Tensor, "edges dim"]:
    """Return for each local edge the sum of messages from other edges, weighted per angle."""
    return sum_to(messages.index_select(0, angles.sender) * weights, angles.receiver, len(messages))
