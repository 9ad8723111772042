"""Angular sums over pairs of edges at an atom, without a list of triplets."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..graph import Graph
from .basis import SphericalHarmonics
from .geometry import legendre
from .layers import Constants


class EdgeGrid(NamedTuple):
    """Edges arranged in a padded grid of atoms × slots, for batched matrix products."""

    rows: Int[Tensor, " edges"]
    """Row of each edge in the grid of atoms · slots."""
    edges: Int[Tensor, " grid"]
    """The edge in each row; the first edge in empty rows."""
    filled: Bool[Tensor, "grid 1"]
    """Which rows contain an edge."""
    atoms: int
    slots: int
    """The largest number of neighbours."""

    @classmethod
    def from_graph(cls, graph: Graph) -> "EdgeGrid":
        """Arrange the edges of a prepared graph."""
        if graph.slot is None or graph.max_neighbours is None:
            raise ValueError("The graph has no slots of edges; call the model's prepare first.")
        target, atoms = graph.edge_index[1], len(graph.numbers)
        slots = max(1, graph.max_neighbours)
        rows = target * slots + graph.slot
        all_edges = torch.arange(len(target), device=target.device)
        edges = target.new_full((atoms * slots,), -1).index_copy(0, rows, all_edges)
        return cls(rows, edges.clamp(min=0), (edges >= 0).unsqueeze(1), atoms, slots)

    def spread(self, values: Float[Tensor, "edges dim"]) -> Float[Tensor, "grid dim"]:
        """Return the grid with the values of the edges in their rows, zero in the others."""
        return _Spread.apply(values, self.rows, self.edges, self.filled)  # type: ignore[no-any-return, no-untyped-call]

    def collect(
        self, values: Float[Tensor, "grid dim"], reverse: Int[Tensor, " edges"]
    ) -> Float[Tensor, "edges dim"]:
        """Return for every edge the value in the row of its reverse edge."""
        if len(reverse) == 0:
            return values.index_select(0, self.rows)
        turned = self.rows.index_select(0, reverse), reverse.index_select(0, self.edges)
        return _Collect.apply(values, *turned, self.filled)  # type: ignore[no-any-return, no-untyped-call]


class _Spread(torch.autograd.Function):
    """Rows into a grid; forward and backward are gathers, which are faster than scatters."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor, edges: Tensor, filled: Tensor) -> Tensor:
        ctx.save_for_backward(rows, edges, filled)
        if len(values) == 0:  # there is no edge for empty rows
            return values.new_zeros(len(edges), values.shape[1])
        return values.index_select(0, edges) * filled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _Collect.apply(gradient, *ctx.saved_tensors), None, None, None  # type: ignore[no-untyped-call]


class _Collect(torch.autograd.Function):
    """The inverse of :class:`_Spread`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor, edges: Tensor, filled: Tensor) -> Tensor:
        ctx.save_for_backward(rows, edges, filled)
        return values.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _Spread.apply(gradient, *ctx.saved_tensors), None, None, None  # type: ignore[no-untyped-call]


class AngularBlock(NamedTuple):
    """Tensors for the angular sums of a block of atoms.

    The sums are batched matrix products, in one of two equivalent forms. For few neighbours, Y_l0
    of every pair is computed. For many, the addition theorem
    Y_l0(α) = √(4π/(2l+1)) Σ_m Y_lm(û_kj) Y_lm(û_ji) factorises it, so that time and memory are
    linear in the number of edges; the term k = i (same image), with α = π, is subtracted in closed
    form.
    """

    radial: Float[Tensor, "degrees rows radial"]
    """Radial part of the spherical basis."""
    evaluate: Float[Tensor, "atoms slots terms"]
    """For each neighbour i, Y_l0(α_kj,ji) by degree and neighbour k (zero for k = i), or Y_lm(û_ji)
    by degree and order."""
    gather: Float[Tensor, "degrees atoms orders slots"] | None
    """Y_lm(û_kj), for the sums over k; None if all pairs are computed."""
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
    """The angular sum Σ_k Y_l0(α_kj,ji) T_l[kj] of every edge j → i, k ≠ i, without triplets.

    The edges into an atom are arranged in a grid. Large grids are processed in blocks of atoms that
    fit into the cache.
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
"""Rows of the grid per block; tuned on a CPU."""
MANY_ROWS = 16384
"""Rows above which blocks are used, and interactions are recomputed in the backward pass
(checkpointing)."""
FEW_NEIGHBOURS = 32
"""Number of neighbours up to which all pairs are computed; tuned on a CPU."""


class AngularBasis(Constants):
    """The angular basis, shared by all interactions.

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
        """Arrange the basis by atom, given unit vectors from source to target."""
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
