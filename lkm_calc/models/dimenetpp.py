"""DimeNet++ (Gasteiger, Giri, Margraf and Günnemann 2020, arXiv:2011.14115)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..basis import BesselBasis, SphericalBesselBasis, SphericalHarmonics
from ..energy import ANY_SIZE, AtomOutput, EnergyModel, check_choice, check_sizes
from ..geometry import legendre, lengths_and_directions
from ..graph import Graph
from ..layers import AtomEmbedding, Constants, EdgeLinear, Residual, dense
from ..scatter import sum_to

silu = nn.functional.silu

SIZES = {
    **dict.fromkeys(("hidden", "num_blocks", "triplet_dim", "basis_dim", "output_dim"), ANY_SIZE),
    "num_spherical": (1, 20),
    "num_radial": (1, 100),
    "envelope_exponent": (3, 100),
    **dict.fromkeys(("num_before_skip", "num_after_skip", "num_output_dense"), (0, 1000)),
}
"""Smallest and largest value of each size."""


class EdgeGrid(NamedTuple):
    """Edges laid out by target atom, each atom's in consecutive slots, for batched products."""

    rows: Int[Tensor, " edges"]
    """Row of each edge in the grid of atoms · slots."""
    edges: Int[Tensor, " grid"]
    """The edge in each row; the first one in empty rows."""
    filled: Bool[Tensor, "grid 1"]
    """Which rows hold an edge."""
    atoms: int
    slots: int
    """The largest number of neighbours."""

    @classmethod
    def from_graph(cls, graph: Graph) -> "EdgeGrid":
        """Lay out the edges of a prepared graph."""
        if graph.slot is None or graph.max_neighbours is None:
            raise ValueError("The graph has no slots of edges; call the model's prepare first.")
        target, atoms = graph.edge_index[1], len(graph.numbers)
        slots = max(1, graph.max_neighbours)
        rows = target * slots + graph.slot
        all_edges = torch.arange(len(target), device=target.device)
        edges = target.new_full((atoms * slots,), -1).index_copy(0, rows, all_edges)
        return cls(rows, edges.clamp(min=0), (edges >= 0).unsqueeze(1), atoms, slots)

    def spread(self, values: Float[Tensor, "edges dim"]) -> Float[Tensor, "grid dim"]:
        """Return the grid with the edges' values in their rows, zero in the others."""
        return _Spread.apply(values, self.rows, self.edges, self.filled)  # type: ignore[no-any-return, no-untyped-call]

    def collect(
        self, values: Float[Tensor, "grid dim"], reverse: Int[Tensor, " edges"]
    ) -> Float[Tensor, "edges dim"]:
        """Return for every edge what the row of its reverse holds."""
        if len(reverse) == 0:
            return values.index_select(0, self.rows)
        turned = self.rows.index_select(0, reverse), reverse.index_select(0, self.edges)
        return _Collect.apply(values, *turned, self.filled)  # type: ignore[no-any-return, no-untyped-call]


class _Spread(torch.autograd.Function):
    """Rows into a grid, one to one: both directions are gathers, which are faster than scatters."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor, edges: Tensor, filled: Tensor) -> Tensor:
        ctx.save_for_backward(rows, edges, filled)
        if len(values) == 0:  # there is no first one to stand in
            return values.new_zeros(len(edges), values.shape[1])
        return values.index_select(0, edges) * filled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _Collect.apply(gradient, *ctx.saved_tensors), None, None, None  # type: ignore[no-untyped-call]


class _Collect(torch.autograd.Function):
    """The way back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor, edges: Tensor, filled: Tensor) -> Tensor:
        ctx.save_for_backward(rows, edges, filled)
        return values.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _Spread.apply(gradient, *ctx.saved_tensors), None, None, None  # type: ignore[no-untyped-call]


class AngularBlock(NamedTuple):
    """What the sums at some of the atoms need.

    They are batched matrix products, in one of two equal forms. Where neighbours are few, Y_l0 of
    every pair of them is written down. Where they are many, the addition theorem
    Y_l0(α) = √(4π/(2l+1)) Σ_m Y_lm(û_kj) Y_lm(û_ji) splits it, so that time and memory grow with
    edges; the term k = i (same image), where α = π, is subtracted in closed form.
    """

    radial: Float[Tensor, "degrees rows radial"]
    """Radial part of the spherical basis."""
    evaluate: Float[Tensor, "atoms slots terms"]
    """The sums for each neighbour i: over degrees and neighbours k, Y_l0(α_kj,ji), zero for k = i;
    or over degrees and orders, Y_lm(û_ji)."""
    gather: Float[Tensor, "degrees atoms orders slots"] | None
    """Y_lm(û_kj), for the sums over k; None where all pairs are written down."""
    opposite: Float[Tensor, "degrees 1 1"]
    """Y_l0(π), the weight of k = i."""

    def sums(
        self, x: Float[Tensor, "rows channels"], weight: Float[Tensor, "degrees radial channels"]
    ) -> Float[Tensor, "rows channels"]:
        """Return Σ_k Σ_ln sbf_ln(r_kj, α) weight[l, n] ⊙ x_kj for each neighbour i."""
        (atoms, slots, _), channels = self.evaluate.shape, x.shape[1]
        terms = torch.bmm(self.radial, weight) * x
        parts = terms
        if self.gather is not None:
            parts = self.gather.flatten(0, 1) @ terms.view(-1, slots, channels)
        parts = parts.view(len(weight), atoms, -1, channels).transpose(0, 1)
        sums = (self.evaluate @ parts.reshape(atoms, -1, channels)).view(-1, channels)
        return sums if self.gather is None else sums - (self.opposite * terms).sum(0)


class AngularSum(NamedTuple):
    """The angular part Σ_k Y_l0(α_kj,ji) T_l[kj] of every edge j → i, k ≠ i, without triplets.

    The edges into an atom are laid out in a grid. Where there are many, the grid is taken in blocks
    of atoms, so that what is written is read while it is still in the cache.
    """

    grid: EdgeGrid
    reverse: Int[Tensor, " edges"]
    blocks: Sequence[AngularBlock]

    def of(
        self,
        x: Float[Tensor, "edges channels"],
        weight: Float[Tensor, "degrees radial channels"],
    ) -> Float[Tensor, "edges channels"]:
        """Return Σ_k Σ_ln sbf_ln(r_kj, α) weight[l, n] ⊙ x_kj for each edge j → i."""
        on_grid = self.grid.spread(x)
        if len(self.blocks) == 1:
            return self.grid.collect(self.blocks[0].sums(on_grid, weight), self.reverse)
        parts = on_grid.split([block.radial.shape[1] for block in self.blocks])
        sums = [block.sums(part, weight) for block, part in zip(self.blocks, parts, strict=True)]
        return self.grid.collect(torch.cat(sums), self.reverse)


BLOCK_ROWS = 2048
"""Rows of the grid in a block; measured on a CPU."""
MANY_ROWS = 16384
"""Rows above which there are blocks, and interactions are calculated again in the backward pass
instead of being kept."""
FEW_NEIGHBOURS = 32
"""Number of neighbours up to which all pairs of them are written down: measured on a CPU."""


class AngularBasis(Constants):
    """What the angular sums of all interactions share.

    Args:
        degrees: Number of angular functions.
    """

    signs: Tensor
    opposite: Tensor

    def __init__(self, degrees: int) -> None:
        super().__init__()
        self.degrees = degrees
        self.harmonics = SphericalHarmonics(degrees - 1)
        l = torch.arange(degrees, dtype=torch.float64)
        parity, norm = (-1) ** l, ((2 * l + 1) / (4 * math.pi)).sqrt()
        # û_ji is the opposite of the direction i → j stored at j: Y_l(−û) = (−1)^l Y_l(û).
        self.set_constant("signs", (parity / norm).view(-1, 1))
        self.set_constant("opposite", (parity * norm).view(-1, 1, 1))

    def forward(
        self,
        graph: Graph,
        directions: Float[Tensor, "edges 3"],
        radial: Float[Tensor, "edges degrees radial"],
    ) -> AngularSum:
        """Lay the basis out by atom, given unit vectors from source to target."""
        grid = EdgeGrid.from_graph(graph)
        by_degree = grid.spread(radial.flatten(1)).unflatten(1, radial.shape[1:])
        by_degree = by_degree.transpose(0, 1).contiguous()
        if grid.slots <= FEW_NEIGHBOURS:
            on_grid = grid.spread(directions).view(grid.atoms, grid.slots, 3)
            zonal = legendre(-(on_grid @ on_grid.mT), self.degrees, dim=2)
            other = ~torch.eye(grid.slots, dtype=torch.bool, device=zonal.device)
            evaluate, gather = (zonal * other.unsqueeze(1)).flatten(2), None
        else:
            y = grid.spread(self.harmonics(directions).flatten(1))
            y = y.view(grid.atoms, grid.slots, self.degrees, -1)
            evaluate = (y * self.signs).flatten(2)
            gather = y.permute(2, 0, 3, 1).contiguous()
        whole = AngularBlock(by_degree, evaluate, gather, self.opposite)
        if gather is None or grid.atoms * grid.slots <= MANY_ROWS:
            return AngularSum(grid, graph.reverse, [whole])
        atoms = max(1, BLOCK_ROWS // grid.slots)
        blocks = zip(
            by_degree.split(atoms * grid.slots, dim=1),
            evaluate.split(atoms),
            gather.split(atoms, dim=1),
            strict=True,
        )
        return AngularSum(
            grid, graph.reverse, [AngularBlock(*block, self.opposite) for block in blocks]
        )


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

    def forward(
        self,
        m: Float[Tensor, "edges hidden"],
        rbf: Float[Tensor, "edges radial"],
        angular_sum: AngularSum,
    ) -> Float[Tensor, "edges hidden"]:
        """Return the updated messages."""
        x_ji = silu(self.from_ji(m))
        # Two linear maps without a bias between them are one.
        x_kj = silu(self.from_kj(m)) * (rbf @ (self.rbf_out.weight @ self.rbf_in.weight).T)
        x_kj = silu(self.down(x_kj))
        # W_d W_c in one, for each degree and radial function: (degrees, radial, channels).
        sbf = torch.einsum(
            "bln,cb->lnc", self.sbf_in.weight.view(self.basis_shape), self.sbf_out.weight
        )
        h = x_ji + silu(self.up(angular_sum.of(x_kj, sbf)))
        for layer in self.before_skip:
            h = layer(h)
        h = silu(self.dense(h)) + m
        for layer in self.after_skip:
            h = layer(h)
        return h


class Output(nn.Module):
    """t_i = Σ_j (W rbf) ⊙ m_ji, up-projection, dense layers, one value an atom."""

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
    """DimeNet++ with its angular sum over edges instead of triplets; 1,885,830 parameters.

    State m on directed edges j → i within the cut-off; each of ``num_blocks`` interactions mixes
    in the edges k → j by distance and angle, k ≠ i. An output block after the embedding and after
    each interaction adds to the energy. Every path from an edge to the energy is gated by a
    bias-free function of the radial basis, so energy and forces are smooth at the cut-off.

    LKM embeddings, one for each of the ``num_blocks + 1`` output blocks: the sums t_i that enter it
    (``lkm_tap="state"``, (atoms, hidden)) or the features of its last hidden layer (``"head"``,
    (atoms, output_dim)).

    Args:
        hidden: Width of the messages.
        num_blocks: Number of interactions.
        triplet_dim: Width of the angular sum.
        basis_dim: Width of the bottleneck through which basis functions enter.
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
        """Return the sum of the output blocks' values and the embedding of each."""
        atoms, target = len(graph.numbers), graph.edge_index[1]
        distances, directions = lengths_and_directions(graph.edge_vectors().to(self.dtype))
        rbf = self.radial_basis(distances)
        angular_sum = self.angular_basis(graph, directions, self.spherical_basis(distances))

        m = self.embedding(graph, rbf)
        values, taps = self.outputs[0](m, rbf, target, atoms)
        embeddings = [taps[self.lkm_tap]]
        for interaction, output in zip(self.interactions, self.outputs[1:], strict=True):
            if len(angular_sum.blocks) > 1:
                m = checkpoint(
                    interaction, m, rbf, angular_sum, use_reentrant=False, preserve_rng_state=False
                )
            else:
                m = interaction(m, rbf, angular_sum)
            block_values, taps = output(m, rbf, target, atoms)
            values = values + block_values
            embeddings.append(taps[self.lkm_tap])
        return AtomOutput(values, tuple(embeddings))
