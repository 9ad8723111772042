"""Evaluate one model or a committee (ensemble) on structures: mean and spread."""

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
"""Substrings of out-of-memory errors of torch, CUDA and their libraries."""


class Extras(Mapping[str, Any]):
    """Uncertainty measures of a structure, computed on first access.

    They cost up to a quarter of an MD step of a small molecule and are rarely needed.
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
        """Compute before copying, so that copies hold no embeddings, possibly on a GPU."""
        return {"_compute": None, "_found": self._values}


class Evaluation(NamedTuple):
    """Results for one structure."""

    results: dict[str, Any]
    """ASE properties, see :class:`lkm_calc.LKMCalculator`."""
    extras: Mapping[str, Any]
    """Uncertainty measures, for which ASE has no property names."""


class Output(NamedTuple):
    """Output of one model for one structure, in eV and Å."""

    energy: float
    forces: NDArray[np.float64]
    energies: NDArray[np.float64]
    stress: NDArray[np.float64] | None
    """(6) in Voigt order."""
    embeddings: tuple[Tensor, ...]
    """(atoms, dim) per layer, on the device of the model."""


class Committee:
    """One or more models on one device, whose mean is the result.

    Each model gets the edges within its own cutoff, as if it were used alone.

    Args:
        models: They may differ in architecture, dtype and cutoff.
        compile: See :class:`lkm_calc.LKMCalculator`.
        exact_repeats: ``deterministic`` of that class.

    Raises:
        ValueError: The list is empty, a model predicts a property other than an energy in eV, or
            the models have no element in common.
    """

    def __init__(
        self, models: Sequence[EnergyModel], compile: bool = False, exact_repeats: bool = False
    ) -> None:
        if not models:
            raise ValueError("The list of models is empty; a committee needs at least one model.")
        for model in models:
            unit = model.provenance.get("energy_unit", "eV")
            if unit != "eV":
                raise ValueError(
                    f"The model predicts a property in {unit}, not an energy in eV. Call it with a "
                    "Graph, or use lkm-train evaluate."
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
                f"The models have no element in common ({elements}). Use models trained on the "
                "same or similar data."
            )

    @own_settings
    def __call__(
        self, structures: Sequence[ase.Atoms], search: Search = neighbour_list
    ) -> list[Evaluation]:
        """Return the results of structures, computed as one batch.

        Raises:
            ValueError: A structure contains an element that a model was not trained on, no atoms,
                or non-finite positions.
            MemoryError: The batch does not fit into memory.
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
                    f"{model.cutoff:g} Å do not fit into the memory of {model.device}. Use a "
                    "smaller batch_size, or a model with a shorter cutoff or fewer features."
                ) from error
        return [
            Evaluation(_mean(outputs), Extras(partial(self._extras, atoms.numbers.copy(), outputs)))
            for atoms, outputs in zip(structures, zip(*members, strict=True), strict=True)
        ]

    @own_settings
    def _extras(self, numbers: NDArray[np.integer], outputs: Sequence[Output]) -> dict[str, Any]:
        """Return the uncertainty measures of one structure."""
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
    """Return the standard deviations over n models (not n − 1) for one structure.

    Returns:
        ``energy_std`` = √⟨(E_m − ⟨E⟩)²⟩ in eV, a float; ``forces_std`` of each force component,
        (atoms, 3) in eV/Å; ``force_spread`` = √⟨|F_m − ⟨F⟩|²⟩, (atoms) in eV/Å, which is invariant
        under rotation; with a stress, ``stress_std``, (6) in eV/Å³.
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
    """Return whether the stress of a structure is defined."""
    return bool(atoms.pbc.any() and atoms.cell.rank == 3)


def _mean(outputs: Sequence[Output]) -> dict[str, Any]:
    """Return the ASE properties of one structure in new arrays."""
    energy = sum(output.energy for output in outputs) / len(outputs)
    results: dict[str, Any] = {"energy": energy, "free_energy": energy}
    for name in ("forces", "energies", "stress"):
        values = [getattr(output, name) for output in outputs]
        if values[0] is not None:
            results[name] = reduce(np.add, values) / len(values)
    return results


def _split(out: EnergyForces, atoms: Sequence[int], periodic: Sequence[bool]) -> list[Output]:
    """Return the results of each structure; all but the embeddings are on the CPU."""
    sizes = list(atoms)
    energies, all_forces, all_shares, *stresses = _fetched(
        [out.energy, out.forces, out.atom_energies, *([] if out.stress is None else [out.stress])]
    )
    forces, shares = all_forces.split(sizes), all_shares.split(sizes)
    layers = [layer.split(sizes) for layer in out.embeddings]
    stress = stresses[0].numpy() if stresses else None
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
    """Return tensors of one dtype on the CPU, with a single synchronisation of a GPU."""
    if tensors[0].device.type == "cpu":
        return tensors
    parts = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
    sizes = [tensor.numel() for tensor in tensors]
    return [part.view_as(one) for part, one in zip(parts.split(sizes), tensors, strict=True)]
