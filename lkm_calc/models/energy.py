"""What an energy model is: local atomic energies, their scale and the reference energies."""

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
    """In the model's own dtype and scale, one a layer or, as many for each, several."""
    scale: Float[Tensor, ""]
    """Factor in eV on the values, float64."""

    def energies(self) -> Float[Tensor, "values atoms"]:
        """Return the shares in eV, float64."""
        return torch.stack(self.values).double() * self.scale


class Prediction(NamedTuple):
    """What a model computes for a graph."""

    energy: Float[Tensor, " graphs"]
    """Total energies in eV, float64, reference energies included."""
    atom_energies: Float[Tensor, " atoms"]
    """The atoms' shares of it in eV, float64; they sum to the energy."""
    embeddings: tuple[Float[Tensor, "atoms dim"], ...]
    """Per-atom embeddings of each layer, for :func:`lkm_calc.lkm_loss`."""
    shares: LayerShares | None = None
    """The layers' shares of the energy, for training; None if the architecture does not tell."""


class AtomOutput(NamedTuple):
    """What an architecture writes for each atom, in the model's own dtype and scale."""

    values: Float[Tensor, " atoms"]
    embeddings: tuple[Float[Tensor, "atoms dim"], ...]
    layer_values: tuple[Float[Tensor, " atoms"], ...] = ()
    """Each layer's part of the values, as :class:`LayerShares` has them."""


class EnergyModel(nn.Module, ABC):
    """A potential energy surface: E = Σ_i (scale · y_i + reference energy of element Z_i).

    Where an element's isolated atoms have a given energy, see :meth:`calibrate`, the reference
    energy is that, and bonded atoms also have the element's binding energy.

    An architecture implements :meth:`atom_output`; everything that turns y_i into eV stands here.
    Forces and stress are functions over a model, see :func:`lkm_calc.energy_and_forces`.

    Args:
        cutoff: Radius in Å of the neighbour list that the model needs.
        hypers: The arguments that rebuild the same architecture.
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
        """Return each atom's value y_i and its embedding after each layer, of a prepared graph."""

    def prepare(self, graph: Graph) -> Graph:
        """Return the graph with the integers that the architecture derives from the edges.

        What is there already is kept. On a prepared graph the model only calculates: shapes are
        known beforehand and a GPU is not waited for.
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

        The sum over atoms and the reference energies are float64 in every dtype: a total energy
        of −10⁴ eV leaves no digits for the forces in float32.
        """
        return self.summed(graph, self.atom_output(self.prepare(graph)), self.isolated_shifts)

    def summed(
        self, graph: Graph, output: AtomOutput, isolated_shifts: Float[Tensor, " numbers"]
    ) -> Prediction:
        """Return the prediction for a graph of what the architecture writes for its atoms.

        Args:
            graph: The structures.
            output: Of each atom.
            isolated_shifts: By atomic number, what isolated atoms have more than bonded ones, eV.
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
        """Return the energy of each bonded atom in eV without the network's contribution."""
        reference = self.reference_energies.index_select(0, numbers)
        if self.isolated_elements:
            reference = reference + self.binding_energies.index_select(0, numbers)
        return reference

    def isolated_by_edges(
        self, graph: Graph, vectors: Float[Tensor, "edges 3"]
    ) -> tuple[Float[Tensor, " atoms"], Float[Tensor, "edges 3"]] | None:
        """Return what a graph's atoms have more than bonded ones in eV, and its gradient.

        For code that computes the network without torch. The gradient is that of the sum by the
        edge vectors in Å; None where all atoms are bonded.
        """
        if not self.isolated_elements:
            return None
        target, atoms = graph.edge_index[1], len(graph.numbers)
        with torch.no_grad():  # there is more to do only where a structure falls apart
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
        """Symbols of the elements that the model accepts, by atomic number."""
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
            scale: Factor in eV on every atom's value.
            reference_energies: Energy in eV by atomic number.
            elements: Atomic numbers that occur in the training set.
            binding_energies: Of elements whose isolated atoms have the reference energy exactly:
                what bonded atoms have more, in eV by atomic number. An atom with a neighbour within
                half the cut-off is a bonded one, and from there to the cut-off the energy goes over
                smoothly: see ``lkm_calc.models.isolated``. After the weights are changed
                call :meth:`measure_isolated_atoms`.
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

        Energies of isolated atoms that :meth:`calibrate` was given stay as they are.

        Args:
            shifts: In eV by atomic number.
        """
        with torch.no_grad():
            for number, shift in shifts.items():
                isolated = number in self.isolated_elements
                energies = self.binding_energies if isolated else self.reference_energies
                energies[number] += shift
        self.measure_isolated_atoms()

    @own_precision
    def measure_isolated_atoms(self) -> None:
        """Evaluate the network on isolated atoms and store what cancels its output for them."""
        with torch.no_grad():
            for number in self.isolated_elements:
                atom = Graph.from_atoms(ase.Atoms([number]), self.cutoff, self.device)
                value = self.atom_output(self.prepare(atom)).values.double().squeeze()
                self.isolated_shifts[number] = -self.binding_energies[number] - self.scale * value

    def check_elements(self, numbers: Iterable[int] | NDArray[np.integer]) -> None:
        """Raise a ValueError that names the elements the model was not trained on."""
        known = set(self.known_elements.nonzero().flatten().tolist())
        strange = sorted({int(z) for z in numbers} - known)
        if strange:
            names = [chemical_symbols[z] if z < len(chemical_symbols) else str(z) for z in strange]
            raise ValueError(
                f"The model does not know {', '.join(names)}: it was trained on "
                f"{', '.join(self.elements)}. Use a model whose training set holds these elements."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EnergyModel":
        """Move and cast like any module, but leave energies and their scale in float64."""
        names = ("scale", "reference_energies", "binding_energies", "isolated_shifts")
        kept = {name: getattr(self, name) for name in names}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self
