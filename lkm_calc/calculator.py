"""The ASE calculator, a thin wrapper around stateless models."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from numpy.typing import NDArray
from tqdm import tqdm

from .committee import Committee, Evaluation, has_stress
from .graph import Search, VerletList, check_skin, neighbour_list
from .models import EnergyModel
from .potential import hessian_of_atoms, load_model, with_zbl
from .runtime import ThreadLock, choose_device, own_settings
from .runtime import deterministic as exact_repeats
from .uncertainty import Guard, Thresholds

_DTYPES = {"float32": torch.float32, "float64": torch.float64}

Source = str | Path | EnergyModel
"""Name of a bundled model, path of a model file, or a model object."""


class LKMCalculator(Calculator):
    """ASE calculator: energy, forces, per-atom energies, and stress of periodic structures.

    Results: ``energy`` and ``free_energy`` (eV, equal), ``forces`` (atoms, 3) in eV/Å,
    ``energies`` (atoms) in eV that sum to the energy, and for periodic structures with
    three cell vectors ``stress`` in eV/Å³ as xx, yy, zz, yz, xz, xy. All are computed in one call.

    For a committee of n models the results are means, and :attr:`extras` contains the standard
    deviations (over n, not n − 1): ``energy_std`` = √⟨(E_m − ⟨E⟩)²⟩ (eV), ``forces_std`` of each
    force component (atoms, 3) in eV/Å, ``force_spread`` = √⟨|F_m − ⟨F⟩|²⟩ (atoms) in eV/Å, and with
    a stress ``stress_std`` (6) in eV/Å³. For a single calibrated model it contains
    ``latent_distance`` (atoms), the distance of the embeddings from those of the training atoms,
    normalised to the largest value of the element on held-out frames (see
    :mod:`lkm_calc.embeddings`), and ``expected_force_error`` (atoms) in eV/Å, the force error
    observed at that distance on held-out frames; for any single model ``layer_disagreement``
    (atoms), see :func:`lkm_calc.embeddings.layer_disagreement`.

    Threads may share a calculator; calls are serialised. ``get_potential_energy(atoms)`` and
    similar methods return the value for the given atoms, ``results`` and :attr:`extras` belong to
    the last call of any thread.

    Args:
        model: Name of a bundled model, path of a model file, or a model object, which is copied.
            A list makes a committee; its members may differ in architecture and cutoff, and it
            accepts the elements common to all.
        device: "auto" uses CUDA if available; else a torch device such as "cpu" or "cuda:1".
        dtype: "float32", "float64", or None for the dtype of the weights. The sum over atoms and
            the reference energies are always float64. float64 conserves energy better in MD, at
            1.5 to 2 times the cost.
        compile: On a CPU, use a compiled C++ kernel; the first call builds it in about ten seconds
            with the system's compiler (or that of the extra ``compiler``) and caches it. On a GPU,
            use CUDA graphs for single structures, as in MD. See :mod:`lkm_calc.compile`, also for
            models without a kernel.
        skin: Verlet skin in Å of the neighbour list for single structures; the list is rebuilt when
            an atom has moved by half of it. 0 rebuilds at every call. Results do not depend on
            it, see :class:`lkm_calc.graph.VerletList`.
        on_extrapolation: Action for structures outside the training distribution: "warn", "stop"
            or "save", see :class:`lkm_calc.uncertainty.Guard`; None disables the check. It does
            not apply to :meth:`evaluate`.
        extrapolation_file: File for "save".
        thresholds: See :class:`lkm_calc.uncertainty.Thresholds`.
        zbl: Add short-range repulsion (ZBL) between atoms closer than in the training frames, see
            :func:`lkm_calc.potential.with_zbl`.
        deterministic: Sum in a fixed order on a GPU, so that results are bitwise reproducible; see
            :func:`lkm_calc.runtime.deterministic`. On a CPU they always are.

    Raises:
        ModelFileError: The model cannot be loaded.
        TypeError: ``model`` has an unsupported type.
        ValueError: dtype, device or skin is invalid; during a calculation, the structure contains
            elements that the model was not trained on, no atoms, or non-finite positions.
        MemoryError: During a calculation, there is not enough memory.
        ExtrapolationError: During a calculation, ``on_extrapolation`` is "stop" and the structure
            is outside the training distribution.
        PropertyNotImplementedError: Stress was requested for a structure that is not periodic or
            lacks a cell vector.
    """

    implemented_properties = [  # noqa: RUF012
        "energy",
        "free_energy",
        "forces",
        "energies",
        "stress",
    ]

    @own_settings
    def __init__(
        self,
        model: Source | Sequence[Source],
        device: str = "auto",
        dtype: str | None = None,
        compile: bool = False,
        skin: float = 1.0,
        on_extrapolation: str | None = None,
        extrapolation_file: str | Path = "extrapolation.extxyz",
        thresholds: Thresholds | None = None,
        zbl: bool = False,
        deterministic: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lock = ThreadLock()
        if dtype is not None and dtype not in _DTYPES:
            raise ValueError(f"dtype is {dtype!r}; choose 'float32', 'float64' or None.")
        check_skin(skin)
        if thresholds is not None and on_extrapolation is None:
            raise ValueError(
                "thresholds needs a guard: set on_extrapolation to 'warn', 'stop' or 'save'."
            )
        place = choose_device(device)
        sources = _sources(model)
        members = [_load(source, place, dtype) for source in sources]
        if zbl:
            members = [with_zbl(member) for member in members]
        self._committee = Committee(members, compile, deterministic)
        self._search: Search = VerletList(self._committee.cutoff, skin) if skin else neighbour_list
        self._extras: Mapping[str, Any] = {}
        self.guard = (
            Guard(members, on_extrapolation, extrapolation_file, thresholds)
            if on_extrapolation is not None
            else None
        )
        names = [one.name if isinstance(one, EnergyModel) else str(one) for one in sources]
        self.parameters.update(
            models=names,
            device=str(place),
            dtype=dtype,
            skin=skin,
            compile=compile,
            zbl=zbl,
            deterministic=deterministic,
        )

    @property
    def models(self) -> tuple[EnergyModel, ...]:
        """The models, in the order in which they were given."""
        return self._committee.models

    @property
    def model(self) -> EnergyModel:
        """The model, if there is only one.

        Raises:
            AttributeError: The calculator is a committee.
        """
        if len(self.models) > 1:
            raise AttributeError(
                f"The calculator has {len(self.models)} models; use the attribute models."
            )
        return self.models[0]

    @property
    def extras(self) -> Mapping[str, Any]:
        """Uncertainty measures of the last structure, computed on access; empty without results."""
        return self._extras if self.results else {}

    @property
    def ordinary(self) -> bool:
        """Whether the last structure was computed without compiled code."""
        return not all(one.used for one in self._committee.force_functions)

    def set(self, **options: Any) -> dict[str, Any]:
        """Reject any option; options are set when the calculator is created.

        Raises:
            ValueError: An option was given.
        """
        if options:
            raise ValueError(
                f"{', '.join(options)} cannot be changed; create a new LKMCalculator instead."
            )
        return {}

    def check_state(self, atoms: ase.Atoms, tol: float = 0.0) -> list[str]:
        """Return which inputs of the models changed since the last calculation.

        Compares positions, numbers, cell and pbc exactly, ignoring ``tol``, and is several times
        faster than ASE's method.
        """
        if self.atoms is None:
            return list(all_changes)
        pairs = {
            "positions": (self.atoms.positions, atoms.positions),
            "numbers": (self.atoms.numbers, atoms.numbers),
            "cell": (self.atoms.cell.array, atoms.cell.array),
            "pbc": (self.atoms.pbc, atoms.pbc),
        }
        return [name for name, (old, new) in pairs.items() if not np.array_equal(old, new)]

    def get_property(
        self, name: str, atoms: ase.Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """Return a property of the given structure, also if threads share the calculator."""
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)  # type: ignore[no-untyped-call]

    def calculate_properties(self, atoms: ase.Atoms, properties: Sequence[str]) -> Any:
        """Return several properties of the given structure; see :meth:`get_property`."""
        with self._lock:
            return super().calculate_properties(atoms, properties)  # type: ignore[no-untyped-call]

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute all properties of a structure, regardless of ``properties``."""
        structure = self.atoms if atoms is None else atoms
        if structure is None:
            raise ValueError("calculate was called without atoms; pass or attach an Atoms object.")
        if "stress" in properties and not has_stress(structure):
            raise PropertyNotImplementedError(
                "stress requires a periodic structure with three cell vectors; pbc is "
                f"{structure.pbc.tolist()} and cell is {structure.cell.tolist()}."
            )
        with self._lock:
            super().calculate(structure, list(properties), list(system_changes))  # type: ignore[no-untyped-call]
            self.results = {}  # so that no stale results remain if this fails
            (found,) = self._committee([structure], self._search)
            if self.guard is not None:
                self.guard(structure, found.extras)
            self.results, self._extras = found

    def get_hessian(self, atoms: ase.Atoms) -> NDArray[np.float64]:
        """Return the Hessian of the energy in eV/Å², (3·atoms, 3·atoms).

        It is recomputed at every call; :func:`lkm_calc.vibrations` computes frequencies from it.

        Raises:
            ValueError: As in a calculation.
        """
        with exact_repeats(self._committee.exact_repeats):
            return hessian_of_atoms(self.models, atoms)

    def evaluate(
        self, structures: Iterable[ase.Atoms], batch_size: int = 32, progress: bool = False
    ) -> list[dict[str, Any]]:
        """Compute many structures in batches, with the same results as one by one.

        Args:
            structures: Structures of any size, also from a generator; group those with a cell for
                efficiency.
            batch_size: Structures per batch. A batch that does not fit into memory is halved, with
                one warning.
            progress: Show a progress bar.

        Returns:
            One dictionary per structure, with keys and units as in the class docstring; ``stress``
            only for periodic structures with three cell vectors.

        Raises:
            ValueError: As in a calculation, or ``batch_size`` is below 1.
            MemoryError: A single structure does not fit into memory.
        """
        found = self._evaluations(structures, batch_size, progress)
        return [evaluation.results for evaluation in found]

    def iterate(
        self, structures: Iterable[ase.Atoms], batch_size: int = 32, progress: bool = False
    ) -> Iterator[Evaluation]:
        """Return an iterator over the pairs (results, extras) of many structures.

        Batches are computed on demand, so neither all structures nor all results are kept in
        memory. Arguments and errors are those of :meth:`evaluate`.
        """
        return map(_with_extras, self._evaluations(structures, batch_size, progress))

    def _evaluations(
        self, structures: Iterable[ase.Atoms], batch_size: int, progress: bool
    ) -> Iterator[Evaluation]:
        if isinstance(structures, ase.Atoms):
            raise ValueError("evaluate needs a list of structures; for a single one pass [atoms].")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        return self._iterate(structures, batch_size, progress)

    def _iterate(
        self, structures: Iterable[ase.Atoms], size: int, progress: bool
    ) -> Iterator[Evaluation]:
        total = len(structures) if isinstance(structures, Sequence) else None
        source, batch, told = iter(structures), list[ase.Atoms](), False
        with tqdm(total=total, unit="structure", disable=not progress) as bar:
            while batch := batch or list(islice(source, size)):
                first, batch = batch[:size], batch[size:]
                try:
                    found = self._committee(first)
                except MemoryError as error:
                    if len(first) == 1:
                        raise
                    found, reason = None, str(error)
                # Only here has the failed computation released its memory.
                if found is None:
                    size, batch = len(first) // 2, first + batch
                    if not told:
                        told = True
                        warnings.warn(
                            f"A batch of {len(first)} is too large: {reason} Continuing with "
                            f"batches of at most {size}.",
                            stacklevel=2,
                        )
                    continue
                yield from found
                bar.update(len(first))


def _with_extras(found: Evaluation) -> Evaluation:
    """Compute the extras now, so that embeddings do not accumulate."""
    len(found.extras)
    return found


@torch.inference_mode(False)  # weights created in that mode cannot be used outside it
def _sources(model: Any) -> list[Source]:
    """Return the list of models, or raise a TypeError for an unsupported type."""
    single = isinstance(model, str | bytes | Mapping | EnergyModel)
    several = isinstance(model, Iterable) and not single
    sources = list(model) if several else [model]
    for source in sources:
        if not isinstance(source, str | Path | EnergyModel):
            raise TypeError(
                f"model is {model!r:.200}; pass the name of a bundled model, the path of a model "
                "file, an EnergyModel, or a list of these."
            )
    return sources


def _load(source: Source, device: torch.device, dtype: str | None) -> EnergyModel:
    """Return a model owned by the calculator."""
    weights_type = None if dtype is None else _DTYPES[dtype]
    if isinstance(source, EnergyModel):
        model = copy.deepcopy(source).to(device=device, dtype=weights_type)
        model.measure_isolated_atoms()  # in the new dtype
        return model.eval().requires_grad_(False)
    return load_model(source, device=device, dtype=weights_type)
