"""Message-passing atomic cluster expansion similar to MACE (arXiv:2206.07697)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..graph import Graph, sum_to
from ..nn import (
    ANY_SIZE,
    AtomEmbedding,
    BesselBasis,
    FlatHarmonics,
    TensorLinear,
    TensorProduct,
    check_choice,
    check_sizes,
    degree_slice,
    dense,
    envelope,
    lengths_and_directions,
    soft_norm,
)
from .energy import AtomOutput, EnergyModel

silu = nn.functional.silu

SIZES = {
    **dict.fromkeys(("num_channels", "num_interactions", "radial_hidden"), ANY_SIZE),
    "max_ell": (1, 3),
    "correlation": (1, 5),
    "num_radial": (1, 100),
    "envelope_exponent": (3, 100),
}
"""Minimum and maximum of each size."""


class Options(NamedTuple):
    """Optional parts of an interaction; see :class:`ACE`."""

    node_dependent: bool
    runtime_geometry: bool
    gated: bool
    normalised: bool


class Edges(NamedTuple):
    """Edges j → i with their basis functions."""

    source: Int[Tensor, " edges"]
    target: Int[Tensor, " edges"]
    rbf: Float[Tensor, "edges radial"]
    cutoff: Float[Tensor, "edges 1"]
    """Cut-off function, 1 at zero distance and 0 at the cut-off."""
    harmonics: Float[Tensor, "edges components"]
    elements: Float[Tensor, "edges hidden"]
    """1 + embedding of the element of i + embedding of the element of j."""
    norm: float
    """Factor by which sums over neighbours are multiplied."""


class RadialNetwork(nn.Module):
    """Weights of an edge j → i for each degree and channel, from its length and its two atoms.

    w = W₂ σ(W₁ σ(W₀ rbf ⊙ (1 + t_i + s_j + Σ_lm q_i,lm Y_lm)) + b), where t and s are linear in
    the scalars of the atoms and depend on their elements. The last term projects the tensors of
    atom i onto the edge (runtime geometry calculation, ViSNet, arXiv:2210.16518).
    """

    def __init__(self, num_radial: int, hidden: int, out: int) -> None:
        super().__init__()
        self.first = dense(num_radial, hidden, bias=False)
        self.second = dense(hidden, hidden)
        self.third = dense(hidden, out, bias=False)

    def forward(
        self, rbf: Float[Tensor, "edges radial"], modulation: Float[Tensor, "edges hidden"]
    ) -> Float[Tensor, "edges out"]:
        """Return the weights, not yet multiplied by the cut-off function."""
        weights: Tensor = self.third(silu(self.second(silu(self.first(rbf) * modulation))))
        return weights


class Interaction(nn.Module):
    """One layer: messages, tensor products, and the update of scalars and tensors."""

    def __init__(
        self,
        channels: int,
        max_ell: int,
        correlation: int,
        num_radial: int,
        radial_hidden: int,
        first: bool,
        last: bool,
        options: Options,
    ) -> None:
        super().__init__()
        self.max_ell, self.max_out = max_ell, 0 if last else max_ell
        self.first, self.options = first, options
        degrees, kept = range(max_ell + 1), range(self.max_out + 1)
        weights = max_ell + 1 + (0 if first else max_ell)
        self.radial = RadialNetwork(num_radial, radial_hidden, weights * channels)
        if not first and options.node_dependent:
            self.to_target = dense(channels, radial_hidden, bias=False)
            self.to_source = dense(channels, radial_hidden, bias=False)
        if not first and options.runtime_geometry:
            self.project = TensorLinear(channels, radial_hidden, range(1, max_ell + 1))
        self.message = dense(channels, channels, bias=False)
        self.basis = TensorLinear(channels, channels, degrees)
        self.linear = TensorLinear(channels, channels, kept)
        self.products = nn.ModuleList(
            TensorProduct(channels, max_ell, max_ell if k < correlation else self.max_out, k == 2)
            for k in range(2, correlation + 1)
        )
        if not first:
            self.skip = TensorLinear(channels, channels, kept)
        if options.gated:
            self.gate_in = dense(channels, channels)
            self.gate_out = dense(channels, channels * (1 + self.max_out))

    def forward(
        self, x: Tensor, tensors: Tensor | None, edges: Edges
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new scalars, the new tensors (including the scalars), and A."""
        a = self.atomic_basis(x, tensors, edges)
        if self.options.normalised:
            a = soft_norm(a)
        new = self.linear(a)
        kept, b = len(new), a
        for product in self.products:
            b = product(a, b)
            new = new + b[:kept]
            if self.options.normalised:
                b = soft_norm(b)
        if tensors is not None:
            new = new + self.skip(tensors)
        x = x + new[0]
        if self.options.gated:
            gates = self.gate_out(silu(self.gate_in(x))).split(x.shape[1], dim=1)
            x = x + gates[0]
            parts = [new[degree_slice(l)] * (1 + gates[l]) for l in range(1, self.max_out + 1)]
            new = torch.cat([x.unsqueeze(0), *parts])
        else:
            new = torch.cat([x.unsqueeze(0), new[1:]])
        if self.options.normalised:
            new = soft_norm(new)
        return x, new, a

    def atomic_basis(self, x: Tensor, tensors: Tensor | None, edges: Edges) -> Tensor:
        """Return A_i,lm = W_l Σ_j (w_l ⊙ W x_j) Y_lm + w'_l ⊙ h_j,lm (components, atoms, channels).

        Equation 8 of MACE, with the tensor product of neighbour features and spherical harmonics
        restricted to the paths in which one of the two is a scalar.
        """
        channels = x.shape[1]
        modulation = edges.elements
        if tensors is not None and self.options.node_dependent:
            modulation = modulation + self.to_target(x).index_select(0, edges.target)
            modulation = modulation + self.to_source(x).index_select(0, edges.source)
        if tensors is not None and self.options.runtime_geometry:
            at_target = self.project(tensors).index_select(1, edges.target)
            dots = (at_target * edges.harmonics.T[1:].unsqueeze(-1)).sum(0)
            modulation = modulation + dots / (self.max_ell + 1)
        weights = self.radial(edges.rbf, modulation) * edges.cutoff
        weights = weights.unflatten(1, (-1, channels)).unbind(1)
        sent = self.message(x).index_select(0, edges.source)
        received = None if tensors is None else tensors.index_select(1, edges.source)
        parts = []
        for l in range(self.max_ell + 1):
            where = degree_slice(l)
            part = (weights[l] * sent).unsqueeze(1) * edges.harmonics[:, where].unsqueeze(2)
            if received is not None and l > 0:
                part = part + (weights[self.max_ell + l] * received[where]).transpose(0, 1)
            parts.append(part)
        sums = sum_to(torch.cat(parts, 1), edges.target, len(x)) * edges.norm
        a: Tensor = self.basis(sums.transpose(0, 1))
        return a


class Readout(nn.Module):
    """A value for each atom: wᵀ σ(W x + b) + c, or wᵀ x + c; w and c are initialised to zero."""

    def __init__(self, channels: int, linear: bool) -> None:
        super().__init__()
        self.hidden = None if linear else dense(channels, channels)
        self.value = nn.Linear(channels, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, x: Float[Tensor, "atoms channels"]) -> Float[Tensor, " atoms"]:
        """Return the values."""
        if self.hidden is not None:
            x = silu(self.hidden(x))
        values: Tensor = self.value(x).squeeze(-1)
        return values


class ACE(EnergyModel):
    """Equivariant message passing with many-body products, similar to MACE.

    Each interaction sums the messages of the neighbours to an atomic basis A of spherical tensors
    up to degree ``max_ell``, forms products of up to ``correlation`` factors A, and uses them to
    update the scalars and tensors of the atoms. A readout after each interaction contributes to the
    energy. With ``correlation`` 3, the first interaction already describes four-body interactions.
    Every message is multiplied by the cut-off function, so energy and forces are smooth at the
    cut-off. The energy is invariant under rotations, reflections and permutations. The receptive
    field of two layers is twice the cut-off.

    Differences from MACE: messages couple neighbour tensors and spherical harmonics only where one
    of the two is a scalar; the radial network can also depend on the scalars of both atoms
    (``node_dependent``) and on the tensors of the target atom projected onto the edge
    (``runtime_geometry``, ViSNet, arXiv:2210.16518); higher products are chains of pairwise
    products; and the update can be gated and normalised.

    LKM embeddings, one for each interaction: the scalars x_i after it (``lkm_tap="scalars"``,
    (atoms, num_channels)), or √(1 + |A_i,l|²) − 1, the norm of the atomic basis, for each degree
    and channel (``"norms"``, (atoms, (max_ell + 1) · num_channels)).

    Args:
        num_channels: Number of channels of scalars and tensors.
        num_interactions: Number of layers.
        max_ell: Maximum degree l of spherical harmonics and tensors, 1 to 3.
        correlation: Correlation order: maximum number of factors A in a product, 1 to 5.
        num_radial: Number of radial functions.
        radial_hidden: Width of the radial network.
        cutoff: Radius in Å.
        envelope_exponent: Exponent p of the cut-off function.
        avg_num_neighbors: Sums over neighbours are divided by its square root.
        node_dependent: Let radial weights depend on the scalars of both atoms, from the second
            layer on.
        runtime_geometry: Let them depend on the tensors of the target atom projected onto the edge,
            from the second layer on.
        gated: Gate scalars and tensors by a network of the scalars.
        normalised: Divide tensors by √(1 + mean square).
        linear_readouts: Make all readouts except the last one linear, as in MACE.
        lkm_tap: Which embeddings to return, ``"scalars"`` or ``"norms"``.
    """

    name = "ace"

    def __init__(
        self,
        num_channels: int = 32,
        num_interactions: int = 3,
        max_ell: int = 2,
        correlation: int = 3,
        num_radial: int = 6,
        radial_hidden: int = 32,
        cutoff: float = 5.0,
        envelope_exponent: int = 6,
        avg_num_neighbors: float = 8.0,
        node_dependent: bool = True,
        runtime_geometry: bool = True,
        gated: bool = True,
        normalised: bool = True,
        linear_readouts: bool = False,
        lkm_tap: str = "scalars",
    ) -> None:
        hypers = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_sizes(hypers, SIZES)
        check_choice("lkm_tap", lkm_tap, ("scalars", "norms"))
        if not avg_num_neighbors > 0:
            raise ValueError(f"avg_num_neighbors is {avg_num_neighbors}; it must be positive.")
        super().__init__(cutoff, hypers)
        self.lkm_tap, self.envelope_exponent = lkm_tap, envelope_exponent
        self.norm = avg_num_neighbors**-0.5
        self.embedding = AtomEmbedding(num_channels)
        self.radial_basis = BesselBasis(num_radial, cutoff, envelope_exponent)
        self.harmonics = FlatHarmonics(max_ell)
        self.target_element = AtomEmbedding(radial_hidden)
        self.source_element = AtomEmbedding(radial_hidden)
        options = Options(node_dependent, runtime_geometry, gated, normalised)
        last = num_interactions - 1
        self.interactions = nn.ModuleList(
            Interaction(
                num_channels,
                max_ell,
                correlation,
                num_radial,
                radial_hidden,
                t == 0,
                t == last,
                options,
            )
            for t in range(num_interactions)
        )
        self.readouts = nn.ModuleList(
            Readout(num_channels, linear_readouts and t != last) for t in range(num_interactions)
        )

    def edges(self, graph: Graph) -> Edges:
        """Return the edges of a graph with their basis functions."""
        source, target = graph.edge_index
        distances, directions = lengths_and_directions(graph.edge_vectors().to(self.dtype))
        x = distances / self.cutoff
        elements = 1 + self.target_element(graph.numbers).index_select(0, target)
        elements = elements + self.source_element(graph.numbers).index_select(0, source)
        return Edges(
            source,
            target,
            math.sqrt(2 / self.cutoff) * self.radial_basis(distances),
            (x * envelope(x, self.envelope_exponent)).unsqueeze(1),
            self.harmonics(directions),
            elements,
            self.norm,
        )

    def atom_output(self, graph: Graph) -> AtomOutput:
        """Return the sum of the values of all readouts and the embedding of each layer."""
        edges = self.edges(graph)
        x, tensors = self.embedding(graph.numbers), None
        layer_values, embeddings = [], []
        for interaction, readout in zip(self.interactions, self.readouts, strict=True):
            x, tensors, a = interaction(x, tensors, edges)
            layer_values.append(readout(x))
            embeddings.append(x if self.lkm_tap == "scalars" else norms(a))
        return AtomOutput(sum(layer_values), tuple(embeddings), tuple(layer_values))


def norms(a: Float[Tensor, "components atoms channels"]) -> Float[Tensor, "atoms invariants"]:
    """Return √(1 + |a_l|²) − 1 for each degree and channel, ordered by degree."""
    max_ell = math.isqrt(len(a)) - 1
    parts = [a[degree_slice(l)].square().sum(0) for l in range(max_ell + 1)]
    return torch.sqrt(1 + torch.cat(parts, 1)) - 1
