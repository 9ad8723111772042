"""The ASE calculator: a thin shell around a model that does the work without any state."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from .checkpoint import load_model
from .compiled import CompiledForces, ordinary
from .device import choose_device
from .energy import EnergyModel
from .forces import EnergyForces
from .graph import Graph

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class LKMCalculator(Calculator):
    """Energy, forces and per-atom energies of a model, and stress where there is a cell.

    Results: ``energy`` and ``free_energy`` (eV, equal), ``forces`` (atoms, 3) in eV/Å,
    ``energies`` (atoms) in eV that sum to the energy, and for periodic structures with
    three cell vectors ``stress`` in eV/Å³ as xx, yy, zz, yz, xz, xy. All are computed in one call.

    Args:
        model: Name of a bundled model, path of a model file, or a model object, which is used
            as it is and moved to the device and dtype.
        device: "auto" takes CUDA when there is one; else a torch device such as "cpu" or "cuda:1".
        dtype: "float32", "float64", or None for the type of the model's weights. The sum over
            atoms and the reference energies are float64 either way; float64 throughout makes MD
            conserve energy better than float32, at 1.5 to 2 times the cost.
        compile: Compute single structures, as in MD, with programs compiled for their shapes; on a
            GPU, with CUDA graphs. The first call of a structure takes about a minute, once: see
            :mod:`lkm_calc.compiled`. The model's weights must then stay as they are.

    Raises:
        ModelFileError: The model cannot be loaded.
        ValueError: The dtype or device is unknown; on calculation, the structure holds an element
            that the model was not trained on, no atoms, or positions that are not finite.
        MemoryError: On calculation, a structure or batch needs more than there is.
        PropertyNotImplementedError: Stress of a structure that is not periodic or lacks a cell
            vector.
    """

    implemented_properties = [  # noqa: RUF012
        "energy",
        "free_energy",
        "forces",
        "energies",
        "stress",
    ]
    # Charges and magnetic moments are not read, so a change of them recomputes nothing.
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012

    def __init__(
        self,
        model: str | Path | EnergyModel,
        device: str = "auto",
        dtype: str | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if dtype is not None and dtype not in _DTYPES:
            raise ValueError(f"dtype is {dtype!r}; choose 'float32', 'float64' or None.")
        place = choose_device(device)
        weights_type = None if dtype is None else _DTYPES[dtype]
        if isinstance(model, EnergyModel):
            self.model = model.to(device=place, dtype=weights_type).eval()
        else:
            self.model = load_model(model, device=place, dtype=weights_type)
        unit = self.model.provenance.get("energy_unit", "eV")
        if unit != "eV":
            raise ValueError(
                f"The model learnt a property in {unit}, not an energy in eV. For its predictions "
                "call it with a Graph, or use lkm-train evaluate."
            )

        self._compiled = CompiledForces(self.model) if compile else None

    @property
    def ordinary(self) -> bool:
        """Whether the last structure was computed without a compiled program."""
        return self._compiled is None or not self._compiled.used

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute everything for a structure, whatever of it is asked for."""
        super().calculate(atoms, list(properties), list(system_changes))  # type: ignore[no-untyped-call]
        structure = self.atoms
        if structure is None:
            raise ValueError("calculate was called without atoms; attach them or pass them.")
        if "stress" in properties and not _has_stress(structure):
            raise PropertyNotImplementedError(
                "stress needs a periodic structure with three cell vectors; pbc is "
                f"{structure.pbc.tolist()} and the cell {structure.cell.tolist()}."
            )
        self.results = self.evaluate([structure])[0]

    def evaluate(
        self, structures: Iterable[ase.Atoms], batch_size: int = 32
    ) -> list[dict[str, Any]]:
        """Return the results of many structures, the same numbers as one by one.

        Args:
            structures: Any sizes; those with a cell are best kept together.
            batch_size: Structures a batch; memory grows with it.

        Returns:
            One dictionary a structure, keys and units as in the class's description; ``stress``
            only where the structure is periodic and has three cell vectors.

        Raises:
            ValueError: As on calculation, or ``batch_size`` is below 1.
        """
        if isinstance(structures, ase.Atoms):
            raise ValueError("evaluate takes a list of structures; for one, write [atoms].")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        structures = list(structures)
        results: list[dict[str, Any]] = []
        for first in range(0, len(structures), batch_size):
            # Forces need gradients, wherever this is called from.
            with torch.inference_mode(False):
                results += self._evaluate_batch(structures[first : first + batch_size])
        return results

    def _evaluate_batch(self, structures: Sequence[ase.Atoms]) -> list[dict[str, Any]]:
        for atoms in structures:
            self.model.check_elements(atoms.numbers)
        graphs = [Graph.from_atoms(atoms, self.model.cutoff) for atoms in structures]
        periodic = [_has_stress(atoms) for atoms in structures]
        try:
            out = self._energy_and_forces(graphs, stress=any(periodic))
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
                raise
            edges = sum(graph.edge_index.shape[1] for graph in graphs)
            raise MemoryError(
                f"{sum(map(len, structures))} atoms with {edges} pairs within "
                f"{self.model.cutoff:g} Å need more memory than there is on {self.model.device}. "
                "Take a smaller batch_size, or a model with a shorter cut-off or fewer features."
            ) from error
        ends = np.cumsum([len(atoms) for atoms in structures])[:-1]
        forces = np.split(out.forces.cpu().numpy(), ends)
        energies = np.split(out.atom_energies.cpu().numpy(), ends)
        stress = None if out.stress is None else out.stress.cpu().numpy()
        results = []
        for k, energy in enumerate(out.energy.tolist()):
            one = {
                "energy": energy,
                "free_energy": energy,
                "forces": forces[k].astype(np.float64),
                "energies": energies[k].copy(),
            }
            if stress is not None and periodic[k]:
                one["stress"] = full_3x3_to_voigt_6_stress(stress[k])
            results.append(one)
        return results

    def _energy_and_forces(self, graphs: Sequence[Graph], stress: bool) -> EnergyForces:
        """Return the results of graphs, compiled if there is only one and it is wanted."""
        if self._compiled is not None and len(graphs) == 1:
            return self._compiled(graphs[0], stress)
        graph = graphs[0] if len(graphs) == 1 else Graph.collate(graphs)
        return ordinary(self.model, graph, stress)


def _has_stress(atoms: ase.Atoms) -> bool:
    """Tell whether a derivative by strain over a volume makes sense."""
    return bool(atoms.pbc.any() and atoms.cell.rank == 3)
