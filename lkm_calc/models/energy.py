"""Base class of energy models: atomic energies, energy scale and reference energies."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import ase
import numpy as np
import torch
from ase.data import chemical_symbols
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from ..embeddings import LatentSpace
from ..graph import Graph, count, sum_to
from ..nn import MAX_NUMBER
from ..runtime import own_precision
from .isolated import isolation


class LayerShares(NamedTuple):
    """Contributions of each layer to the atomic energies."""

    values: tuple[Float[Tensor, " atoms"], ...]
    """Unscaled, in the dtype of the model; one per layer, or the same number for each layer."""
    scale: Float[Tensor, ""]
    """Factor in eV by which the values are multiplied, float64."""

    def energies(self) -> Float[Tensor, "values atoms"]:
        """Return the contributions in eV, float64."""
        return torch.stack(self.values).double() * self.scale


class Prediction(NamedTuple):
    """Output of a model for a graph."""

    energy: Float[Tensor, " graphs"]
    """Total energies in eV, float64, including reference energies."""
    atom_energies: Float[Tensor, " atoms"]
    """Per-atom energies in eV, float64, which sum to the total energy."""
    embeddings: tuple[Float[Tensor, "atoms dim"], ...]
    """Per-atom embeddings of each layer, for :func:`lkm_calc.lkm_loss`."""
    shares: LayerShares | None = None
    """Contributions of the layers, for training; None if the architecture does not return them."""


class AtomOutput(NamedTuple):
    """Per-atom output of an architecture, unscaled and in the dtype of the model."""

    values: Float[Tensor, " atoms"]
    embeddings: tuple[Float[Tensor, "atoms dim"], ...]
    layer_values: tuple[Float[Tensor, " atoms"], ...] = ()
    """Contribution of each layer to the values, as in :class:`LayerShares`."""


class EnergyModel(nn.Module, ABC):
    """Base class of all models: E = Σ_i (scale · y_i + reference energy of element Z_i).

    If the energy of an isolated atom of an element is given (see :meth:`calibrate`), it is the
    reference energy of the element, and the binding energy of the element is added for bonded
    atoms.

    An architecture implements :meth:`atom_output`; this class converts y_i to eV. Forces and stress
    are computed by :func:`lkm_calc.energy_and_forces`.

    Args:
        cutoff: Radius in Å of the neighbour list.
        hypers: Arguments with which the same architecture can be rebuilt.
    """

    name: str
    scale: Tensor
    reference_energies: Tensor
    known_elements: Tensor
    binding_energies: Tensor
    isolated_shifts: Tensor

    def __init__(self, cutoff: float, hypers: Mapping[str, Any]) -> None:
        super().__init__()
        if isinstance(cutoff, bool) or not 0 < cutoff < math.inf:
            raise ValueError(f"cutoff is {cutoff}; it must be a positive length in Å.")
        self.cutoff = float(cutoff)
        self.hypers = dict(hypers)
        self.provenance: dict[str, Any] = {}
        self.latent: LatentSpace | None = None
        # Float64 whatever the model's dtype: see _apply.
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        reference = torch.zeros(MAX_NUMBER + 1, dtype=torch.float64)
        self.register_buffer("reference_energies", reference)
        known = torch.ones(MAX_NUMBER + 1, dtype=torch.bool)
        known[0] = False
        self.register_buffer("known_elements", known)
        self.isolated_elements: tuple[int, ...] = ()
        for name in ("binding_energies", "isolated_shifts"):
            self.register_buffer(name, torch.zeros_like(reference), persistent=False)

    @abstractmethod
    def atom_output(self, graph: Graph) -> AtomOutput:
        """Return the value y_i and the embeddings of each atom for a prepared graph."""

    def prepare(self, graph: Graph) -> Graph:
        """Return the graph with the indices that the architecture derives from the edges.

        Existing indices are kept. For a prepared graph all shapes are known, so that the forward
        pass does not synchronise with the GPU.
        """
        if graph.slot is not None and graph.max_neighbours is not None:
            return graph
        target = graph.edge_index[1]
        counts = count(target, len(graph.numbers))
        order = torch.argsort(target, stable=True)
        places = torch.arange(len(target), device=target.device)
        places = places - (counts.cumsum(0) - counts)[target[order]]
        slot = torch.empty_like(target).index_copy(0, order, places)
        return replace(graph, slot=slot, max_neighbours=int(counts.max()))

    @own_precision
    def forward(self, graph: Graph) -> Prediction:
        """Return energies and embeddings of a graph.

        Reference energies and the sum over atoms are always float64: float32 cannot resolve small
        differences of total energies around −10⁴ eV.
        """
        return self.summed(graph, self.atom_output(self.prepare(graph)), self.isolated_shifts)

    def summed(
        self, graph: Graph, output: AtomOutput, isolated_shifts: Float[Tensor, " numbers"]
    ) -> Prediction:
        """Return the prediction for a graph from the per-atom output of the architecture.

        Args:
            graph: The structures.
            output: Per-atom output.
            isolated_shifts: Energy in eV, by atomic number, added for isolated atoms.
        """
        reference = self.offsets(graph.numbers)
        if self.isolated_elements:
            lengths = graph.edge_vectors().norm(dim=1)
            weight = isolation(lengths, graph.edge_index[1], len(graph.numbers), self.cutoff)
            reference = reference + weight * isolated_shifts.index_select(0, graph.numbers)
        atom_energies = output.values.double() * self.scale + reference
        energy = sum_to(atom_energies, graph.graph_index, graph.n_graphs)
        shares = LayerShares(output.layer_values, self.scale) if output.layer_values else None
        return Prediction(energy, atom_energies, output.embeddings, shares)

    def offsets(self, numbers: Int[Tensor, " atoms"]) -> Float[Tensor, " atoms"]:
        """Return the energy in eV of each atom, if bonded, without the network's contribution."""
        reference = self.reference_energies.index_select(0, numbers)
        if self.isolated_elements:
            reference = reference + self.binding_energies.index_select(0, numbers)
        return reference

    def isolated_by_edges(
        self, graph: Graph, vectors: Float[Tensor, "edges 3"]
    ) -> tuple[Float[Tensor, " atoms"], Float[Tensor, "edges 3"]] | None:
        """Return the extra energies in eV of atoms that are not bonded, and their gradient.

        For code that evaluates the network without torch. The gradient is that of the sum with
        respect to the edge vectors, in eV/Å. None if all atoms are bonded.
        """
        if not self.isolated_elements:
            return None
        target, atoms = graph.edge_index[1], len(graph.numbers)
        with torch.no_grad():  # rarely non-zero: only if a molecule dissociates
            weight = isolation(vectors.norm(dim=1), target, atoms, self.cutoff)
            if not weight.any():
                return None
        with torch.enable_grad():
            vectors = vectors.detach().requires_grad_()
            weight = isolation(vectors.norm(dim=1), target, atoms, self.cutoff)
            shifts = weight * self.isolated_shifts.index_select(0, graph.numbers)
            (gradient,) = torch.autograd.grad(shifts.sum(), vectors)
        return shifts.detach(), gradient

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.scale.device

    @property
    def elements(self) -> tuple[str, ...]:
        """Symbols of the supported elements, sorted by atomic number."""
        return tuple(chemical_symbols[z] for z in self.known_elements.nonzero().flatten().tolist())

    def calibrate(
        self,
        scale: float,
        reference_energies: Mapping[int, float],
        elements: Iterable[int],
        binding_energies: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        """Set the energy scale, the reference energies and the supported elements.

        Args:
            scale: Factor in eV by which the value of every atom is multiplied.
            reference_energies: Energy in eV by atomic number.
            elements: Atomic numbers that occur in the training set.
            binding_energies: Energy in eV, by atomic number, added for bonded atoms of elements
                whose isolated atoms must have exactly the reference energy. An atom with a
                neighbour within half the cut-off is bonded; between there and the cut-off the
                energy is switched smoothly, see ``lkm_calc.models.isolated``. Call
                :meth:`measure_isolated_atoms` after changing the weights.
        """
        with torch.no_grad():
            self.scale.fill_(scale)
            self.known_elements.zero_()
            self.known_elements[sorted(set(elements))] = True
            for buffer, energies in (
                (self.reference_energies, reference_energies),
                (self.binding_energies, binding_energies),
            ):
                buffer.zero_()
                for number, energy in energies.items():
                    buffer[number] = energy
        self.isolated_elements = tuple(sorted(binding_energies))
        self.isolated_shifts.zero_()
        self.measure_isolated_atoms()

    def shift_energies(self, shifts: Mapping[int, float]) -> None:
        """Add a constant to the energy of every bonded atom of an element.

        Energies of isolated atoms set with :meth:`calibrate` do not change.

        Args:
            shifts: Constants in eV by atomic number.
        """
        with torch.no_grad():
            for number, shift in shifts.items():
                isolated = number in self.isolated_elements
                energies = self.binding_energies if isolated else self.reference_energies
                energies[number] += shift
        self.measure_isolated_atoms()

    @own_precision
    def measure_isolated_atoms(self) -> None:
        """Evaluate the network on isolated atoms and store shifts that cancel its output."""
        with torch.no_grad():
            for number in self.isolated_elements:
                atom = Graph.from_atoms(ase.Atoms([number]), self.cutoff, self.device)
                value = self.atom_output(self.prepare(atom)).values.double().squeeze()
                self.isolated_shifts[number] = -self.binding_energies[number] - self.scale * value

    def check_elements(self, numbers: Iterable[int] | NDArray[np.integer]) -> None:
        """Raise a ValueError if the model was not trained on an element."""
        known = set(self.known_elements.nonzero().flatten().tolist())
        strange = sorted({int(z) for z in numbers} - known)
        if strange:
            names = [chemical_symbols[z] if z < len(chemical_symbols) else str(z) for z in strange]
            raise ValueError(
                f"The model does not support {', '.join(names)}: it was trained on "
                f"{', '.join(self.elements)}. Use a model whose training set contains these "
                "elements."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EnergyModel":
        """Move and cast like any module, but keep energies and their scale in float64."""
        names = ("scale", "reference_energies", "binding_energies", "isolated_shifts")
        kept = {name: getattr(self, name) for name in names}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self
