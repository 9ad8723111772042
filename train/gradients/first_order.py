"""Gradients of a training step from first derivatives only, computed by a kernel.

With v = ∂L/∂F held fixed, the gradient of a loss of the forces is the derivative of the parameter
gradient of the energy along −v,

    ∂L/∂θ = Σ v · ∂F/∂θ = −d/ds ∂E/∂θ (R + s v),

because F = −∂E/∂R. It is computed as a central difference of two parameter gradients at displaced
positions, so no second derivative of the model is needed. A loss of the stress corresponds to a
strain in the same way. Terms of energies and embeddings are averaged over the two positions, with
an error of second order in the displacement. Without forces and stress in the loss, one parameter
gradient at the positions themselves is enough.

In float32, the displacement is a compromise between truncation error and round-off, which depends
on the architecture (``Interface.displacement``). The potential energy surfaces of a new MXMNet or
PAMNet are too rough: no displacement is accurate enough. For these architectures, the differences
are computed in float64 with a smaller displacement. They are then more accurate than double
backward in float32, and are compared with double backward in float64.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from lkm_calc import EnergyForces, EnergyModel, Graph, energy_and_forces
from lkm_calc.compile import Kernel
from lkm_calc.graph import sum_to
from lkm_calc.potential import volumes

from ..data import Batch, Totals
from .loss import Losses
from .protocol import gradient_difference

logger = logging.getLogger("lkm_train")

DISPLACEMENT = 1e-6
"""Norm in Å of the displacement of all atoms of a structure in float64. The truncation error grows
with its square, round-off with its inverse: tests/train/gradients/test_first_order.py."""
TOLERANCE = 1e-3
"""Maximum relative difference from gradients by double backward."""

LossOfResults = Callable[[EnergyForces, Batch, Totals], Losses]
"""The losses of a batch as a function of the output of the model."""


class KernelGradients:
    """Gradients of a batch from a kernel that provides ∂E/∂θ.

    Args:
        model: A model with a kernel that supports training.
        losses: Losses as a function of the output of the model.
        ordinary: The same gradients by double backward, with which the first batch is compared.
    """

    padded = False

    def __init__(
        self,
        model: EnergyModel,
        losses: LossOfResults,
        ordinary: Callable[[Batch, Totals], Tensor],
    ) -> None:
        self.model, self.losses, self.ordinary = model, losses, ordinary
        self.kernel = Kernel(model)
        self.weights = self.kernel.weights
        self.differenced, displacement = self.kernel, self.kernel.interface.displacement
        if model.dtype != torch.float64 and displacement is None:
            self.differenced = Kernel(copy.deepcopy(model).double().requires_grad_(True))
        if model.dtype == torch.float64 or displacement is None:
            displacement = DISPLACEMENT
        self.displacement = displacement
        self.checked = self.failed = False

    def __call__(self, batch: Batch, totals: Totals) -> Float[Tensor, " parts"]:
        """Add the gradients of a batch and return its losses in float64."""
        if not self.checked:
            self.checked, self.failed = True, not self._agrees(batch, totals)
        if self.failed:
            return self.ordinary(batch, totals)
        losses, gradients = self.gradients(batch, totals)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        return torch.stack([part.detach().double() for part in losses])

    def gradients(self, batch: Batch, totals: Totals) -> tuple[Losses, list[Tensor]]:
        """Return the losses of a batch and their gradients with respect to the weights."""
        graph = batch.graph
        self._update()
        vectors = graph.edge_vectors()
        found = self.kernel.run(graph, vectors).assembled(graph, vectors, batch.stress is not None)
        results = [t for t in (found.energy, found.forces, found.stress) if t is not None]
        for tensor in (*results, *found.embeddings):
            tensor.requires_grad_()
        losses = self.losses(found, batch, totals)
        by = torch.autograd.grad(
            losses.total, (*results, *found.embeddings), allow_unused=True, materialize_grads=True
        )
        by_energy, by_forces = by[0], by[1]
        by_stress = None if found.stress is None else by[2]
        by_embeddings = by[len(results) :]
        layers = None
        if any(tensor.any() for tensor in by_embeddings):
            layers = torch.stack(by_embeddings)
        direction = edge_directions(graph, vectors, by_forces, by_stress)
        if direction.any():
            return losses, self._along(graph, vectors, direction, by_energy, layers)
        by_atoms = by_energy.index_select(0, graph.graph_index)
        return losses, self.kernel.gradients(graph, vectors, by_atoms, layers)

    def _update(self) -> None:
        """Copy the current weights into the kernels."""
        self.kernel.update()
        if self.differenced is not self.kernel:
            with torch.no_grad():
                for copied, weight in zip(self.differenced.weights, self.weights, strict=True):
                    copied.copy_(weight)
            self.differenced.update()

    def _along(
        self,
        graph: Graph,
        vectors: Float[Tensor, "edges 3"],
        direction: Float[Tensor, "edges 3"],
        by_energy: Float[Tensor, " graphs"],
        by_embeddings: Float[Tensor, "layers atoms width"] | None,
    ) -> list[Tensor]:
        """Return the derivative of ∂E/∂θ along a direction, plus first-order terms."""
        of_edge = graph.graph_index.index_select(0, graph.edge_index[1])
        edges, atoms = (
            torch.bincount(index, minlength=graph.n_graphs)
            for index in (of_edge, graph.graph_index)
        )
        # Norm of atomic displacements that would change the edges by the same amount.
        squares = sum_to(direction.square().sum(1), of_edge, graph.n_graphs)
        norms = (squares * atoms / (2 * edges).clamp(min=1)).sqrt()
        step = self.displacement / norms
        moving = norms > 0
        slope = torch.where(moving, 0.5 / step, 0.0)
        step = torch.where(moving, step, 0.0)
        moved = direction * step.index_select(0, of_edge).unsqueeze(1)
        by_atoms = [
            (0.5 * by_energy + sign * slope).index_select(0, graph.graph_index) for sign in (1, -1)
        ]
        layers = None
        if by_embeddings is not None:
            layers = torch.cat([0.5 * by_embeddings, 0.5 * by_embeddings], dim=1)
        both = Graph.collate([graph, graph])
        displaced = torch.cat([vectors + moved, vectors - moved])
        found = self.differenced.gradients(both, displaced, torch.cat(by_atoms), layers)
        dtype = self.model.dtype
        return [gradient.to(dtype) for gradient in found]

    def _double_backward(self, batch: Batch, totals: Totals) -> Tensor:
        """Add gradients by double backward to the weights whose gradients are differenced."""
        if self.differenced is self.kernel:
            return self.ordinary(batch, totals)
        model = self.differenced.model
        results = energy_and_forces(model, batch.graph, True, batch.stress is not None)
        total = self.losses(results, batch, totals).total
        total.backward()
        return total.detach()

    def _agrees(self, batch: Batch, totals: Totals) -> bool:
        """Compare with double backward and log the difference."""
        with without_zeros(self.weights):
            self._update()
            off, norm = gradient_difference(
                lambda batch: self.gradients(batch, totals)[1],
                self._double_backward,
                self.differenced.weights,
                batch,
                totals,
            )
        relative = off / max(norm, 1e-30)
        logger.info("Training with kernels: relative error of the gradient %.1e", relative)
        if relative <= TOLERANCE:
            return True
        logger.warning(
            "The gradient of the kernel differs from that of double backward by %.1e, more than "
            "%.0e; continuing with double backward.",
            relative,
            TOLERANCE,
        )
        return False


@contextmanager
def without_zeros(weights: Iterable[Tensor]) -> Iterator[None]:
    """Temporarily set weights that are all zero to random values.

    New readouts are zero, so all other weights would have zero gradients.
    """
    zeros = [weight for weight in weights if not weight.any()]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in zeros:
            weight.normal_(std=0.1, generator=generator)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight in zeros:
                weight.zero_()


def edge_directions(
    graph: Graph,
    vectors: Float[Tensor, "edges 3"],
    by_forces: Float[Tensor, "atoms 3"],
    by_stress: Float[Tensor, "graphs 3 3"] | None,
) -> Float[Tensor, "edges 3"]:
    """Return changes of edge vectors for displacements −∂L/∂F and the strain ∂L/∂σ/V."""
    source, target = graph.edge_index
    moved = by_forces.index_select(0, source) - by_forces.index_select(0, target)
    if by_stress is None or graph.cell is None:
        return moved
    strain = (by_stress + by_stress.mT) / (2 * volumes(graph.cell))
    of_edge = graph.graph_index.index_select(0, target)
    return moved + torch.einsum("ea,eab->eb", vectors, strain.index_select(0, of_edge))
