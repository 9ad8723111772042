"""One model, or several, that compute the same structures: their mean, and how far they differ."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import ase
import numpy as np
import torch
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from torch import Tensor

from .compile import force_function
from .embeddings import layer_disagreement
from .graph import Graph, Search, neighbour_list
from .models import EnergyModel
from .potential import EnergyForces
from .runtime import deterministic, own_settings
from .uncertainty import calibration_of

NO_MEMORY = ("allocate", "out of memory", "ALLOC_FAILED")
"""What errors of torch, CUDA and its libraries say where memory is short."""


class Extras(Mapping[str, Any]):
    """What is told of a structure beside its results, computed when it is first read.

    It takes as long as a quarter of a step of MD of a small molecule, and most steps nobody asks.
    """

    def __init__(self, compute: Callable[[], dict[str, Any]]) -> None:
        self._compute: Callable[[], dict[str, Any]] | None = compute
        self._found: dict[str, Any] = {}

    @property
    def _values(self) -> dict[str, Any]:
        if self._compute is not None:
            self._found, self._compute = self._compute(), None  # which holds the embeddings
        return self._found

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def __getstate__(self) -> dict[str, Any]:
        """Compute before a copy is made, which then holds no embeddings, on a GPU perhaps."""
        return {"_compute": None, "_found": self._values}


class Evaluation(NamedTuple):
    """What is computed for one structure."""

    results: dict[str, Any]
    """ASE's properties: see :class:`lkm_calc.LKMCalculator`."""
    extras: Mapping[str, Any]
    """What ASE has no names for."""


class Output(NamedTuple):
    """What one model computes for one structure, in eV and Å."""

    energy: float
    forces: NDArray[np.float64]
    energies: NDArray[np.float64]
    stress: NDArray[np.float64] | None
    """(6) in Voigt's order."""
    embeddings: tuple[Tensor, ...]
    """(atoms, dim) a layer, on the model's device."""


class Committee:
    """Models on one device whose mean is the result; often there is only one.

    Each model gets the edges of its own cut-off, so that its part is what it computes alone.

    Args:
        models: They may differ in architecture, dtype and cut-off.
        compile: See :class:`lkm_calc.LKMCalculator`.
        exact_repeats: That class's ``deterministic``.

    Raises:
        ValueError: There are none, one learnt another property than an energy in eV, or there is
            no element that all know.
    """

    def __init__(
        self, models: Sequence[EnergyModel], compile: bool = False, exact_repeats: bool = False
    ) -> None:
        if not models:
            raise ValueError("The list of models is empty; a committee needs at least one.")
        for model in models:
            unit = model.provenance.get("energy_unit", "eV")
            if unit != "eV":
                raise ValueError(
                    f"The model learnt a property in {unit}, not an energy in eV. For its "
                    "predictions call it with a Graph, or use lkm-train evaluate."
                )
        self.models = tuple(models)
        self.exact_repeats = exact_repeats
        self.force_functions = [force_function(model, compile) for model in models]
        self._latent = self._calibration = None
        if len(models) == 1 and models[0].latent is not None:
            self._latent = models[0].latent.to(models[0].device)
            self._calibration = calibration_of(models[0])
        self.cutoff = max(model.cutoff for model in models)
        known = [set(model.known_elements.nonzero().flatten().tolist()) for model in models]
        self._known = set.intersection(*known)
        if not self._known:
            elements = "; ".join(", ".join(model.elements) for model in models)
            raise ValueError(
                f"The models have no element in common ({elements}). A committee is of models "
                "trained on the same data, or nearly."
            )

    @own_settings
    def __call__(
        self, structures: Sequence[ase.Atoms], search: Search = neighbour_list
    ) -> list[Evaluation]:
        """Return mean and spread for each of some structures, computed as one batch.

        Raises:
            ValueError: A structure holds an element that a model does not know, no atoms, or
                positions that are not finite.
            MemoryError: They need more memory than there is.
        """
        for atoms in structures:
            if not self._known.issuperset(atoms.numbers.tolist()):
                for model in self.models:
                    model.check_elements(atoms.numbers)
        periodic = [has_stress(atoms) for atoms in structures]
        graphs = {
            cutoff: [Graph.from_atoms(atoms, cutoff, search=search) for atoms in structures]
            for cutoff in {model.cutoff for model in self.models}
        }
        members = []
        for model, compute in zip(self.models, self.force_functions, strict=True):
            parts = graphs[model.cutoff]
            try:
                with deterministic(self.exact_repeats):
                    graph = parts[0] if len(parts) == 1 else Graph.collate(parts)
                    out = compute(graph, any(periodic))
                members.append(_split(out, [len(atoms) for atoms in structures], periodic))
            except (RuntimeError, MemoryError) as error:
                short = isinstance(error, torch.OutOfMemoryError | MemoryError)
                if not short and not any(words in str(error) for words in NO_MEMORY):
                    raise
                edges = sum(graph.edge_index.shape[1] for graph in parts)
                raise MemoryError(
                    f"{sum(map(len, structures))} atoms with {edges} pairs within "
                    f"{model.cutoff:g} Å need more memory than there is on {model.device}. "
                    "Take a smaller batch_size, or a model with a shorter cut-off or fewer "
                    "features."
                ) from error
        return [
            Evaluation(_mean(outputs), Extras(partial(self._extras, atoms.numbers.copy(), outputs)))
            for atoms, outputs in zip(structures, zip(*members, strict=True), strict=True)
        ]

    @own_settings
    def _extras(self, numbers: NDArray[np.integer], outputs: Sequence[Output]) -> dict[str, Any]:
        """Return what is told of one structure beside its results."""
        if len(outputs) > 1:
            return spread(outputs)
        layers, extras = outputs[0].embeddings, dict[str, Any]()
        if self._latent is not None and self._calibration is not None:
            distance = self._latent.distance(numbers, layers).cpu().numpy()
            extras["latent_distance"] = distance
            extras["expected_force_error"] = self._calibration.force_errors(numbers, distance)
        if len(layers) > 1:
            extras["layer_disagreement"] = layer_disagreement(layers).cpu().numpy()
        return extras


def spread(outputs: Sequence[Output]) -> dict[str, Any]:
    """Return how far the models differ on one structure, over n models and not n − 1.

    Returns:
        ``energy_std`` = √⟨(E_m − ⟨E⟩)²⟩ in eV, a float; ``forces_std``, the same of each component
        of the forces, (atoms, 3) in eV/Å; ``force_spread`` = √⟨|F_m − ⟨F⟩|²⟩, (atoms) in eV/Å,
        which does not depend on how the structure is turned; with a stress, ``stress_std``, (6) in
        eV/Å³.
    """
    forces = np.std([output.forces for output in outputs], axis=0)
    extras: dict[str, Any] = {
        "energy_std": float(np.std([output.energy for output in outputs])),
        "forces_std": forces,
        "force_spread": np.linalg.norm(forces, axis=1),
    }
    stresses = [output.stress for output in outputs if output.stress is not None]
    if stresses:
        extras["stress_std"] = np.std(stresses, axis=0)
    return extras


def has_stress(atoms: ase.Atoms) -> bool:
    """Tell whether a derivative by strain over a volume makes sense."""
    return bool(atoms.pbc.any() and atoms.cell.rank == 3)


def _mean(outputs: Sequence[Output]) -> dict[str, Any]:
    """Return ASE's properties of one structure in arrays of their own."""
    energy = sum(output.energy for output in outputs) / len(outputs)
    results: dict[str, Any] = {"energy": energy, "free_energy": energy}
    for name in ("forces", "energies", "stress"):
        values = [getattr(output, name) for output in outputs]
        if values[0] is not None:
            results[name] = reduce(np.add, values) / len(values)
    return results


def _split(out: EnergyForces, atoms: Sequence[int], periodic: Sequence[bool]) -> list[Output]:
    """Return the results of each structure, all but the embeddings on the CPU."""
    sizes = list(atoms)
    energies, all_forces, all_shares, *virial = _fetched(
        [out.energy, out.forces, out.atom_energies, *([] if out.stress is None else [out.stress])]
    )
    forces, shares = all_forces.split(sizes), all_shares.split(sizes)
    layers = [layer.split(sizes) for layer in out.embeddings]
    stress = virial[0].numpy() if virial else None
    return [
        Output(
            energies[k].item(),
            forces[k].numpy(),
            shares[k].numpy(),
            full_3x3_to_voigt_6_stress(stress[k]) if stress is not None and periodic[k] else None,
            tuple(layer[k] for layer in layers),
        )
        for k in range(len(sizes))
    ]


def _fetched(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return tensors of one type on the CPU, for all of which a GPU is waited for once."""
    if tensors[0].device.type == "cpu":
        return tensors
    parts = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    sizes = [tensor.numel() for tensor in tensors]
    return [part.view_as(one) for part, one in zip(parts.split(sizes), tensors, strict=True)]
