"""DimeNet++ (Gasteiger, Giri, Margraf and Günnemann 2020, arXiv:2011.14115)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..graph import Graph, sum_to
from ..nn import (
    ANY_SIZE,
    AngularBasis,
    AngularSum,
    AtomEmbedding,
    BesselBasis,
    EdgeLinear,
    Residual,
    SphericalBesselBasis,
    check_choice,
    check_sizes,
    dense,
    lengths_and_directions,
)
from .energy import AtomOutput, EnergyModel

silu = nn.functional.silu

SIZES = {
    **dict.fromkeys(("hidden", "num_blocks", "triplet_dim", "basis_dim", "output_dim"), ANY_SIZE),
    "num_spherical": (1, 20),
    "num_radial": (1, 100),
    "envelope_exponent": (3, 100),
    **dict.fromkeys(("num_before_skip", "num_after_skip", "num_output_dense"), (0, 1000)),
}
"""Minimum and maximum of each size."""


class Embedding(nn.Module):
    """First messages: m_ji = σ(W [h_i ‖ h_j ‖ σ(W rbf + b)])."""

    def __init__(self, hidden: int, num_radial: int) -> None:
        super().__init__()
        self.atoms = AtomEmbedding(hidden)
        self.radial = nn.Linear(num_radial, hidden)
        self.dense = EdgeLinear(hidden, hidden)

    def forward(self, graph: Graph, rbf: Tensor) -> Tensor:
        """Return (edges, hidden) messages."""
        edge_part = self.dense.of_edges(silu(self.radial(rbf)))
        return silu(self.dense.combine(self.atoms(graph.numbers), edge_part, *graph.edge_index))


class Interaction(nn.Module):
    """Directional message passing of DimeNet++ (arXiv:2011.14115, figure 1)."""

    def __init__(
        self,
        hidden: int,
        triplet_dim: int,
        basis_dim: int,
        num_spherical: int,
        num_radial: int,
        before_skip: int,
        after_skip: int,
    ) -> None:
        super().__init__()
        self.basis_shape = (basis_dim, num_spherical, num_radial)
        self.rbf_in = dense(num_radial, basis_dim, bias=False)
        self.rbf_out = dense(basis_dim, hidden, bias=False)
        self.sbf_in = dense(num_spherical * num_radial, basis_dim, bias=False)
        self.sbf_out = dense(basis_dim, triplet_dim, bias=False)
        self.from_kj = dense(hidden, hidden)
        self.from_ji = dense(hidden, hidden)
        self.down = dense(hidden, triplet_dim, bias=False)
        self.up = dense(triplet_dim, hidden, bias=False)
        self.before_skip = nn.ModuleList(Residual(hidden) for _ in range(before_skip))
        self.dense = dense(hidden, hidden)
        self.after_skip = nn.ModuleList(Residual(hidden) for _ in range(after_skip))

    def radial_weight(self) -> Float[Tensor, "hidden radial"]:
        """Return the product of the two bias-free linear maps of the radial basis."""
        return self.rbf_out.weight @ self.rbf_in.weight

    def angular_weight(self) -> Float[Tensor, "degrees radial channels"]:
        """Return that of the spherical basis, for each degree and radial function."""
        return torch.einsum(
            "bln,cb->lnc", self.sbf_in.weight.view(self.basis_shape), self.sbf_out.weight
        )

    def forward(
        self,
        m: Float[Tensor, "edges hidden"],
        rbf: Float[Tensor, "edges radial"],
        angular_sum: AngularSum,
    ) -> Float[Tensor, "edges hidden"]:
        """Return the updated messages."""
        x_ji = silu(self.from_ji(m))
        x_kj = silu(self.from_kj(m)) * (rbf @ self.radial_weight().T)
        x_kj = silu(self.down(x_kj))
        h = x_ji + silu(self.up(angular_sum.of(x_kj, self.angular_weight())))
        for layer in self.before_skip:
            h = layer(h)
        h = silu(self.dense(h)) + m
        for layer in self.after_skip:
            h = layer(h)
        return h


class Output(nn.Module):
    """t_i = Σ_j (W rbf) ⊙ m_ji, up-projection, dense layers, one value per atom."""

    def __init__(self, hidden: int, num_radial: int, output_dim: int, num_dense: int) -> None:
        super().__init__()
        self.rbf = dense(num_radial, hidden, bias=False)
        self.up = dense(hidden, output_dim, bias=False)
        self.dense = nn.ModuleList(dense(output_dim, output_dim) for _ in range(num_dense))
        self.value = nn.Linear(output_dim, 1, bias=False)
        nn.init.zeros_(self.value.weight)

    def forward(
        self, m: Tensor, rbf: Tensor, target: Tensor, atoms: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return values (atoms), and t (atoms, hidden) and last features (atoms, output) by tap."""
        t = sum_to(self.rbf(rbf) * m, target, atoms)
        x = self.up(t)
        for layer in self.dense:
            x = silu(layer(x))
        return self.value(x).squeeze(-1), {"state": t, "head": x}


class DimeNetPP(EnergyModel):
    """DimeNet++ with the angular sum computed over edges, not triplets; 1,885,830 parameters.

    Messages m live on directed edges j → i within the cut-off. Each of ``num_blocks`` interactions
    adds messages of the edges k → j, k ≠ i, weighted by distance and angle. Output blocks after
    the embedding and after each interaction contribute to the energy. Every path from an edge to
    the energy is gated by a bias-free function of the radial basis, so energy and forces are smooth
    at the cut-off.

    LKM embeddings, one for each of the ``num_blocks + 1`` output blocks: its input t_i
    (``lkm_tap="state"``, (atoms, hidden)) or the features of its last hidden layer (``"head"``,
    (atoms, output_dim)).

    Args:
        hidden: Width of the messages.
        num_blocks: Number of interactions.
        triplet_dim: Width of the angular sum.
        basis_dim: Width of the bottleneck in the projections of the basis functions.
        output_dim: Width of the output blocks.
        num_spherical: Number of angular functions, l = 0 .. num_spherical-1.
        num_radial: Number of radial functions.
        cutoff: Radius in Å.
        envelope_exponent: Exponent p of the cut-off function.
        num_before_skip: Residual layers before the skip connection of an interaction.
        num_after_skip: Residual layers after it.
        num_output_dense: Dense layers of an output block.
        lkm_tap: Which embeddings to return, ``"state"`` or ``"head"``.
    """

    name = "dimenet++"

    def __init__(
        self,
        hidden: int = 128,
        num_blocks: int = 4,
        triplet_dim: int = 64,
        basis_dim: int = 8,
        output_dim: int = 256,
        num_spherical: int = 7,
        num_radial: int = 6,
        cutoff: float = 5.0,
        envelope_exponent: int = 6,
        num_before_skip: int = 1,
        num_after_skip: int = 2,
        num_output_dense: int = 3,
        lkm_tap: str = "state",
    ) -> None:
        hypers = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_sizes(hypers, SIZES)
        check_choice("lkm_tap", lkm_tap, ("state", "head"))
        super().__init__(cutoff, hypers)
        self.lkm_tap = lkm_tap
        self.radial_basis = BesselBasis(num_radial, cutoff, envelope_exponent)
        self.spherical_basis = SphericalBesselBasis(
            num_spherical, num_radial, cutoff, envelope_exponent
        )
        self.angular_basis = AngularBasis(num_spherical)
        self.embedding = Embedding(hidden, num_radial)
        self.interactions = nn.ModuleList(
            Interaction(
                hidden,
                triplet_dim,
                basis_dim,
                num_spherical,
                num_radial,
                num_before_skip,
                num_after_skip,
            )
            for _ in range(num_blocks)
        )
        self.outputs = nn.ModuleList(
            Output(hidden, num_radial, output_dim, num_output_dense) for _ in range(num_blocks + 1)
        )

    def atom_output(self, graph: Graph) -> AtomOutput:
        """Return the sum of the values of all output blocks and the embedding of each."""
        atoms, target = len(graph.numbers), graph.edge_index[1]
        distances, directions = lengths_and_directions(graph.edge_vectors().to(self.dtype))
        rbf = self.radial_basis(distances)
        angular_sum = self.angular_basis(graph, directions, self.spherical_basis(distances))

        m = self.embedding(graph, rbf)
        values, taps = self.outputs[0](m, rbf, target, atoms)
        layer_values, embeddings = [values], [taps[self.lkm_tap]]
        for interaction, output in zip(self.interactions, self.outputs[1:], strict=True):
            if len(angular_sum.blocks) > 1:
                m = checkpoint(
                    interaction, m, rbf, angular_sum, use_reentrant=False, preserve_rng_state=False
                )
            else:
                m = interaction(m, rbf, angular_sum)
            block_values, taps = output(m, rbf, target, atoms)
            values = values + block_values
            layer_values.append(block_values)
            embeddings.append(taps[self.lkm_tap])
        return AtomOutput(values, tuple(embeddings), tuple(layer_values))
