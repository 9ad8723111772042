"""Short-range repulsion (ZBL) below the distances in the training set.

At distances shorter than in its training set a model is unreliable: it may attract two atoms with
hundreds of eV/Å, so adding a repulsion is not sufficient.
For each pair of elements, two changes apply below an outer radius, the closest distance in the
training set, and none beyond:

- the distance that the model sees is clamped smoothly, to 0.9 of the outer radius;
- the universal repulsion of Ziegler, Biersack and Littmark (ZBL) is switched on, fully at half
  the outer radius.

Forces remain the exact derivative of the energy; energy, forces and second derivatives are
continuous.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from jaxtyping import Float, Int
from torch import Tensor

from ..graph import Graph, sum_to
from ..models import AtomOutput, EnergyModel
from ..nn import MAX_NUMBER, lengths_and_directions
from ..uncertainty import calibration_of
from ..units import BOHR, HARTREE

WHOLE = 0.5
"""Fraction of the outer radius below which the full ZBL repulsion applies."""
HELD = 0.8
"""Fraction of the outer radius below which the distance that the model sees is constant."""
UNKNOWN = 0.7
"""Outer radius relative to the sum of covalent radii if no closest distance is known: below the
shortest bonds (N≡N is 0.77 of that sum) and their vibrations."""
LARGEST = 2.0
"""Upper bound of the outer radius relative to the same sum: pairs farther apart do not collide."""

SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
"""Coefficients and exponents of the universal screening function φ."""
SCREENING_LENGTH = 0.46850
"""Screening length in Å times Z_i^0.23 + Z_j^0.23; 0.8853 Bohr."""
SCREENING_POWER = 0.23


def zbl_energy(
    z_i: Int[Tensor, " pairs"], z_j: Int[Tensor, " pairs"], r: Float[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """Return the screened nuclear repulsion in eV: Z_i Z_j e² / (4πε₀ r) φ(r / a).

    φ(x) = Σ_k c_k exp(−d_k x) and a = 0.4685 Å / (Z_i^0.23 + Z_j^0.23): J. F. Ziegler, J. P.
    Biersack and U. Littmark, The Stopping and Range of Ions in Solids, Pergamon 1985, with the
    constants of pair_style zbl of LAMMPS.

    Args:
        z_i: Atomic numbers of the first atoms.
        z_j: Atomic numbers of the second atoms.
        r: Distances in Å.
    """
    z_i, z_j = z_i.to(r), z_j.to(r)
    x = r * (z_i.pow(SCREENING_POWER) + z_j.pow(SCREENING_POWER)) / SCREENING_LENGTH
    screening = sum((c * torch.exp(-d * x) for c, d in SCREENING), torch.zeros_like(x))
    return HARTREE * BOHR * z_i * z_j / r * screening


def faded(r: Float[Tensor, " pairs"], outer: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Return a C² switch: 1 below :data:`WHOLE` of the outer radius, 0 beyond the outer radius."""
    t = ((r / outer - WHOLE) / (1 - WHOLE)).clamp(0, 1)
    return 1 - t**3 * (10 + t * (6 * t - 15))


def held(r: Float[Tensor, " pairs"], outer: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Return the distance that the model sees: r beyond the outer radius, C² clamped below it.

    The derivative falls as 3t² − 2t³ to 0 at :data:`HELD` of the outer radius.
    """
    t = ((r / outer - HELD) / (1 - HELD)).clamp(0, 1)
    below = outer * ((1 + HELD) / 2 + (1 - HELD) * t**3 * (1 - t / 2))
    return torch.where(r < outer, below, r)


def outer_radii(closest: Mapping[str, float], cutoff: float) -> Float[Tensor, "numbers numbers"]:
    """Return the outer radii in Å by two atomic numbers, in float64.

    Args:
        closest: Closest distance in Å by pair of elements, as "H-C", in either order.
        cutoff: The model's cutoff in Å, an upper bound of the radii.

    Raises:
        ValueError: A pair or its distance is invalid.
    """
    radii = covalent_radii[: MAX_NUMBER + 1]
    sums = radii[:, None] + radii
    table = UNKNOWN * sums
    for pair, distance in closest.items():
        symbols = pair.split("-")
        if len(symbols) != 2 or not set(symbols) <= set(chemical_symbols[1 : MAX_NUMBER + 1]):
            raise ValueError(f"closest contains {pair!r}; write a pair of elements as in 'H-C'.")
        if not 0 < distance < np.inf:
            raise ValueError(
                f"The closest distance of {pair} is {distance}; it must be positive, in Å."
            )
        a, b = (atomic_numbers[symbol] for symbol in symbols)
        table[a, b] = table[b, a] = min(distance, LARGEST * sums[a, b])
    return torch.from_numpy(table.clip(max=cutoff))


class Pairs(NamedTuple):
    """Elements and outer radii of edges."""

    z_i: Int[Tensor, " edges"]
    """Atomic numbers of the targets."""
    z_j: Int[Tensor, " edges"]
    """Atomic numbers of the sources."""
    outer: Float[Tensor, " edges"]
    """Outer radii in Å."""

    def select(self, rows: Int[Tensor, " rows"]) -> "Pairs":
        """Return a selection of edges."""
        return Pairs(*(values.index_select(0, rows) for values in self))


class Held(NamedTuple):
    """Clamped edge vectors and repulsion."""

    vectors: Float[Tensor, "edges 3"]
    """The vectors in Å that the model sees; unchanged beyond the outer radii."""
    repulsion: Float[Tensor, " edges"]
    """Repulsion per edge in eV, half of that of the pair."""


def hold(vectors: Float[Tensor, "edges 3"], pairs: Pairs) -> Held:
    """Return the edge vectors that the model sees, in Å, and the repulsion."""
    r, directions = lengths_and_directions(vectors)
    outer = pairs.outer
    seen = held(r, outer).unsqueeze(-1) * directions
    repulsion = faded(r, outer) * zbl_energy(pairs.z_i, pairs.z_j, r) / 2
    return Held(torch.where((r < outer).unsqueeze(-1), seen, vectors), repulsion)


@dataclass(frozen=True, eq=False)
class HeldGraph(Graph):
    """A graph with given edge vectors instead of differences of its positions."""

    vectors: Float[Tensor, "edges 3"] | None = None

    def edge_vectors(self) -> Float[Tensor, "edges 3"]:
        """Return the given vectors in Å."""
        return super().edge_vectors() if self.vectors is None else self.vectors


class ZBLModel(EnergyModel):
    """A model with ZBL repulsion at short distances, see :func:`with_zbl`.

    Args:
        model: The model; weights are shared.
        outer: Outer radii in Å by two atomic numbers.
    """

    outer: Tensor

    def __init__(self, model: EnergyModel, outer: Float[Tensor, "numbers numbers"]) -> None:
        super().__init__(model.cutoff, model.hypers)
        self.name = f"{model.name}+zbl"
        self.model = model
        self.provenance = model.provenance
        self.latent = model.latent
        self.scale = model.scale
        self.reference_energies = model.reference_energies
        self.known_elements = model.known_elements
        self.isolated_elements = model.isolated_elements
        self.binding_energies = model.binding_energies
        self.isolated_shifts = model.isolated_shifts
        self.register_buffer("outer", outer.to(model.device))

    def prepare(self, graph: Graph) -> Graph:
        """Return the graph as prepared by the model."""
        return self.model.prepare(graph)

    def pairs(self, graph: Graph, dtype: torch.dtype) -> Pairs:
        """Return elements and outer radii of the edges of a graph."""
        z_j, z_i = (graph.numbers.index_select(0, end) for end in graph.edge_index)
        outer = self.outer.flatten().index_select(0, z_j * len(self.outer) + z_i)
        return Pairs(z_i, z_j, outer.to(dtype))

    def atom_output(self, graph: Graph) -> AtomOutput:
        """Return the output of the model for clamped distances plus the repulsion per atom."""
        vectors = graph.edge_vectors()
        seen, repulsion = hold(vectors, self.pairs(graph, vectors.dtype))
        output = self.model.atom_output(HeldGraph(**vars(graph), vectors=seen))
        atoms = sum_to(repulsion, graph.edge_index[1], len(graph.numbers))
        return output._replace(values=output.values + atoms / self.scale)


def with_zbl(model: EnergyModel, closest: Mapping[str, float] | None = None) -> ZBLModel:
    """Return a model with ZBL repulsion between atoms closer than in its training set.

    Results change only for structures in which a pair is closer than its outer radius: the closest
    distance of the two elements in the training set, at most twice the sum of their covalent
    radii. If it is unknown, 0.7 of that sum is used, which prevents collisions, but the model may
    fail at larger distances. Only pairs are considered: this does not replace guards.

    The repulsion is not stored in model files. Save the model itself (``.model``) and call this
    function again after loading.

    Args:
        model: The model; weights are shared.
        closest: Closest distances in Å by pair of elements, as "H-C"; if None, those of the
            model's calibration, with a warning if it has none.

    Raises:
        ValueError: ``closest`` contains an unknown pair or a distance that is not positive, the
            model's calibration is damaged, or the model already has ZBL repulsion.
    """
    if isinstance(model, ZBLModel):
        raise ValueError(
            "The model already has ZBL repulsion; pass its .model to use other distances."
        )
    if closest is None:
        calibration = calibration_of(model)
        if calibration is None:
            warnings.warn(
                "The model file does not contain the closest distances of its training set, so "
                "ZBL repulsion acts only below 0.7 of the covalent radii, and the model may fail "
                "at larger distances. Run lkm-train calibrate, or pass closest={'H-C': ...}.",
                stacklevel=2,
            )
        closest = {} if calibration is None else calibration.closest
    return ZBLModel(model, outer_radii(closest, model.cutoff))
