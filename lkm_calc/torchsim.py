"""Models for torch-sim: many systems or replicas in one batch.

torch-sim is an optional dependency (``pip install "lkm-calc[torchsim]"``) and needs Python 3.12, so
nothing else in the library imports this module.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ase.geometry import complete_cell
from torch import Tensor
from torch_sim.models.interface import ModelInterface
from torch_sim.models.pair_potential import full_to_half_list
from torch_sim.neighbors import torch_nl_linked_cell
from torch_sim.state import SimState

from .calculator import LKMCalculator
from .compile import force_function
from .graph import Graph
from .models import EnergyModel
from .runtime import own_settings


class LKMTorchSimModel(ModelInterface):  # type: ignore[misc, unused-ignore]
    """Energy, forces and stress of torch-sim states, with the results of :class:`LKMCalculator`.

    The systems of a state may differ in size and elements. torch-sim creates states with the dtype
    that this class reports, float64 for any dtype of the weights: total energies of −10⁴ eV are too
    large for float32, and integrating in float64 is cheap.

    Args:
        model: Name of a bundled model, path of a model file, or a model object.
        device: "auto" uses CUDA if available.
        dtype: "float32", "float64", or None for the dtype of the weights.
        compile: On a CPU, use a compiled C++ kernel; the first call builds it in about ten seconds
            and caches it, see :mod:`lkm_calc.compile`. No effect on a GPU and for models without a
            kernel.
        compute_forces: Return the forces.
        compute_stress: Return the stress, needed by constant-pressure integrators and cell filters.
        neighbor_list_fn: A function of :mod:`torch_sim.neighbors`. The default has no limit on the
            number of neighbours and runs on every device.

    Raises:
        ModelFileError: The model cannot be loaded.
        ValueError: The dtype or device is invalid.
    """

    # Memory is dominated by edges and the tensors summed over them.
    _memory_scales_with = "n_edges"

    @own_settings
    def __init__(
        self,
        model: str | Path | EnergyModel,
        device: torch.device | str = "auto",
        dtype: str | None = None,
        *,
        compile: bool = False,
        compute_forces: bool = True,
        compute_stress: bool = False,
        neighbor_list_fn: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch_nl_linked_cell,
    ) -> None:
        super().__init__()
        self.model = LKMCalculator(model, str(device), dtype).model
        self._forces = force_function(self.model, compile, batches=True)
        self.neighbor_list_fn = neighbor_list_fn
        self._device = self.model.device
        self._dtype = torch.float64
        self._compute_forces = compute_forces
        self._compute_stress = compute_stress

    @property
    def compute_forces(self) -> bool:
        """Whether the forces are returned."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, wanted: bool) -> None:
        self._compute_forces = wanted

    @property
    def compute_stress(self) -> bool:
        """Whether the stress is returned."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, wanted: bool) -> None:
        self._compute_stress = wanted

    @own_settings
    def forward(self, state: SimState, **_: Any) -> dict[str, Tensor]:
        """Return the results of a state, in its dtype.

        Returns:
            ``energy`` (systems) in eV, ``forces`` (atoms, 3) in eV/Å, ``stress`` (systems, 3, 3) in
            eV/Å³, NaN for systems that are not periodic or lack a cell vector.

        Raises:
            ValueError: A system contains an element that the model was not trained on, non-finite
                positions, two atoms at the same position, or a flat cell.
        """
        self.model.check_elements(state.atomic_numbers.unique().tolist())
        graph, has_stress = _graph(state, self.model.cutoff, self.neighbor_list_fn)
        results: dict[str, Tensor] = {}
        if self._forces.compiles or self.compute_forces or self.compute_stress:
            stress = self.compute_stress and bool(has_stress.any())
            # Kernels want edges sorted by target.
            out = self._forces(_sorted(graph) if self._forces.compiles else graph, stress)
            results["energy"] = out.energy
            if self.compute_forces:
                results["forces"] = out.forces
            if self.compute_stress:
                found = torch.full_like(state.cell, torch.nan) if out.stress is None else out.stress
                results["stress"] = found.where(has_stress.view(-1, 1, 1), torch.nan)
        else:
            with torch.no_grad():
                results["energy"] = self.model(graph).energy
        return {name: value.to(state.dtype) for name, value in results.items()}


def _graph(
    state: SimState, cutoff: float, neighbor_list_fn: Callable[..., tuple[Tensor, Tensor, Tensor]]
) -> tuple[Graph, Tensor]:
    """Return the graph of a state, and which of its systems have a stress."""
    positions = state.positions.detach().double()
    finite = positions.isfinite().all(1)
    if not finite.all():
        systems = state.system_idx[~finite].unique().tolist()
        raise ValueError(
            f"Positions are not finite in system(s) {systems[:5]}; the simulation diverged. Go "
            "back to the last valid state."
        )
    pbc = state.pbc.to(torch.bool).expand(state.n_systems, 3)
    cell, has_stress = _cells(state, pbc)
    pairs, systems, shifts = neighbor_list_fn(
        positions=positions,
        cell=cell,
        pbc=pbc.contiguous(),
        cutoff=cutoff,
        system_idx=state.system_idx,
    )
    # A half list and its reverse, so that both directions of each pair are always present.
    half, _, shifts = full_to_half_list(pairs, systems, shifts)
    count = half.shape[1]
    periodic = bool(pbc.any())
    graph = Graph(
        numbers=state.atomic_numbers.long(),
        positions=positions,
        edge_index=torch.cat([half, half.flip(0)], dim=1),
        reverse=torch.arange(2 * count, device=half.device).roll(count),
        graph_index=state.system_idx,
        n_graphs=state.n_systems,
        shifts=torch.cat([shifts, -shifts]).double() if periodic else None,
        cell=cell if periodic else None,
    )
    short = graph.edge_vectors().square().sum(-1) < 1e-12
    if short.any():
        pair = graph.edge_index[:, short][:, 0].tolist()
        raise ValueError(
            f"Atoms {pair[0]} and {pair[1]} of the state have the same position (closer than 1e-6 "
            "Å). Remove the duplicate, or check the cell if one is an image of the other."
        )
    return graph, has_stress


def _sorted(graph: Graph) -> Graph:
    """Return the graph with its edges sorted by target."""
    order = torch.argsort(graph.edge_index[1], stable=True)
    place = torch.empty_like(order).index_copy(0, order, torch.arange(len(order)))
    return replace(
        graph,
        edge_index=graph.edge_index[:, order],
        reverse=place[graph.reverse[order]],
        shifts=None if graph.shifts is None else graph.shifts[order],
    )


def _cells(state: SimState, pbc: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cells with vectors as rows, missing ones completed, and which have a stress.

    Args:
        state: Its cells contain the vectors as columns.
        pbc: (systems, 3).
    """
    cell = state.row_vector_cell.detach().double().contiguous()
    missing = ~cell.any(-1)
    if (missing & pbc).any():
        systems = (missing & pbc).any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"A periodic direction has no cell vector in system(s) {systems[:5]}. Set the cell, or "
            "pbc to False for molecules."
        )
    has_stress = pbc.any(1) & ~missing.any(1)
    if missing.any():
        cell = cell.clone()
        for k in missing.any(1).nonzero().flatten().tolist():
            cell[k] = torch.from_numpy(complete_cell(cell[k].cpu().numpy()))
    flat = torch.linalg.det(cell).abs() < 1e-6 * cell.norm(dim=-1).prod(-1)
    if (flat & pbc.any(1)).any():
        systems = (flat & pbc.any(1)).nonzero().flatten().tolist()
        raise ValueError(
            f"The cell is flat in system(s) {systems[:5]}: its vectors are linearly dependent. Set "
            "three independent vectors."
        )
    return cell, has_stress
