"""The ASE calculator: a thin shell around models that do the work without any state."""

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
    """Energy, forces and per-atom energies of a model, and stress where there is a cell.

    Results: ``energy`` and ``free_energy`` (eV, equal), ``forces`` (atoms, 3) in eV/Å,
    ``energies`` (atoms) in eV that sum to the energy, and for periodic structures with
    three cell vectors ``stress`` in eV/Å³ as xx, yy, zz, yz, xz, xy. All are computed in one call.

    Of a committee of n models the results are means, and :attr:`extras` tells how far the models
    differ: ``energy_std`` = √⟨(E_m − ⟨E⟩)²⟩ (eV), ``forces_std``, the same of each component of the
    forces (atoms, 3) in eV/Å, ``force_spread`` = √⟨|F_m − ⟨F⟩|²⟩ (atoms) in eV/Å, and with a stress
    ``stress_std`` (6) in eV/Å³; the means are over n, not n − 1. Of a single model
    that is calibrated there are ``latent_distance`` (atoms), how far the embeddings are from those
    of training atoms, where 1 is the largest of the element on held-out frames (see
    :mod:`lkm_calc.embeddings`), and ``expected_force_error`` (atoms) in eV/Å, the error that went
    with it there; of any single model ``layer_disagreement`` (atoms), see
    :func:`lkm_calc.embeddings.layer_disagreement`.

    Threads may share a calculator: they take turns, and what ``get_potential_energy(atoms)`` and
    the like return is of the atoms given. ``results`` and :attr:`extras` are of the last call of
    any thread.

    Args:
        model: Name of a bundled model, path of a model file, or a model object, of which a copy is
            used: what happens to it later changes nothing here. A list of them is a committee,
            whose members may differ in architecture and cut-off and accept the elements that all
            know.
        device: "auto" takes CUDA when there is one; else a torch device such as "cpu" or "cuda:1".
        dtype: "float32", "float64", or None for the type of the model's weights. The sum over
            atoms and the reference energies are float64 either way; float64 throughout makes MD
            conserve energy better than float32, at 1.5 to 2 times the cost.
        compile: On a CPU, compute with a kernel in C++, which the first call builds in ten seconds
            with the compiler of the machine (or that of the extra ``compiler``), once for all; on a
            GPU, single structures, as in MD, with CUDA graphs. See :mod:`lkm_calc.compile`,
            also for models without a kernel.
        skin: Å by which the neighbour search of single structures reaches beyond the cut-off, so
            that it serves until an atom has moved half of it; 0 searches anew at every call. The
            numbers are the same, see :class:`lkm_calc.graph.VerletList`.
        on_extrapolation: What to do when a calculation meets a structure outside what the models
            were trained on: "warn", "stop" or "save", see :class:`lkm_calc.uncertainty.Guard`;
            nothing where None. Structures given to :meth:`evaluate` are not judged.
        extrapolation_file: Where "save" puts them.
        thresholds: From where on; see :class:`lkm_calc.uncertainty.Thresholds`.
        zbl: Keep atoms apart that come closer than any in the training frames, see
            :func:`lkm_calc.potential.with_zbl`.
        deterministic: Sum in a fixed order on a GPU, so that a call repeated gives the same bits;
            see :func:`lkm_calc.runtime.deterministic`. On a CPU it is so anyway.

    Raises:
        ModelFileError: The model cannot be loaded.
        TypeError: ``model`` is nothing that a model is made of.
        ValueError: The dtype, device or skin is unknown; on calculation, the structure holds an
            element that the model was not trained on, no atoms, or positions that are not finite.
        MemoryError: On calculation, a structure needs more than there is.
        ExtrapolationError: On calculation, ``on_extrapolation`` is "stop" and it is outside.
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
                "There are thresholds but no guard: give on_extrapolation='warn', 'stop' or 'save'."
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
        """The models, in the order given."""
        return self._committee.models

    @property
    def model(self) -> EnergyModel:
        """The only model.

        Raises:
            AttributeError: It is a committee.
        """
        if len(self.models) > 1:
            raise AttributeError(f"There are {len(self.models)} models; see the attribute models.")
        return self.models[0]

    @property
    def extras(self) -> Mapping[str, Any]:
        """What there is beside the results, computed when read; nothing without results."""
        return self._extras if self.results else {}

    @property
    def ordinary(self) -> bool:
        """Whether the last structure was computed without compiled code."""
        return not all(one.used for one in self._committee.force_functions)

    def set(self, **options: Any) -> dict[str, Any]:
        """Refuse options: they are settled when a calculator is made.

        Raises:
            ValueError: There is an option.
        """
        if options:
            raise ValueError(f"{', '.join(options)} cannot be set; make a new LKMCalculator.")
        return {}

    def check_state(self, atoms: ase.Atoms, tol: float = 0.0) -> list[str]:
        """Return what the models read of a structure and has changed since the last calculation.

        Those are positions, numbers, cell and pbc, compared exactly whatever ``tol`` says, and
        several times faster than ASE does.
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
        """Return a result, that of the structure given also where threads share the calculator."""
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)  # type: ignore[no-untyped-call]

    def calculate_properties(self, atoms: ase.Atoms, properties: Sequence[str]) -> Any:
        """Return several results at once; likewise."""
        with self._lock:
            return super().calculate_properties(atoms, properties)  # type: ignore[no-untyped-call]

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute everything for a structure, whatever of it is asked for."""
        structure = self.atoms if atoms is None else atoms
        if structure is None:
            raise ValueError("calculate was called without atoms; attach them or pass them.")
        if "stress" in properties and not has_stress(structure):
            raise PropertyNotImplementedError(
                "stress needs a periodic structure with three cell vectors; pbc is "
                f"{structure.pbc.tolist()} and the cell {structure.cell.tolist()}."
            )
        with self._lock:
            super().calculate(structure, list(properties), list(system_changes))  # type: ignore[no-untyped-call]
            self.results = {}  # should this fail, those of other atoms must not be taken for these
            (found,) = self._committee([structure], self._search)
            if self.guard is not None:
                self.guard(structure, found.extras)
            self.results, self._extras = found

    def get_hessian(self, atoms: ase.Atoms) -> NDArray[np.float64]:
        """Return the second derivatives of the energy in eV/Å², (3·atoms, 3·atoms).

        Calculated anew at every call; :func:`lkm_calc.vibrations` makes frequencies of them.

        Raises:
            ValueError: As on calculation.
        """
        with exact_repeats(self._committee.exact_repeats):
            return hessian_of_atoms(self.models, atoms)

    def evaluate(
        self, structures: Iterable[ase.Atoms], batch_size: int = 32, progress: bool = False
    ) -> list[dict[str, Any]]:
        """Return the results of many structures, the same numbers as one by one.

        Args:
            structures: Any sizes, also from a generator; those with a cell are best kept together.
            batch_size: Structures a batch; memory grows with it. One that needs more memory than
                there is is halved, with one warning.
            progress: Show a progress bar.

        Returns:
            One dictionary a structure, keys and units as in the class's description; ``stress``
            only where the structure is periodic and has three cell vectors.

        Raises:
            ValueError: As on calculation, or ``batch_size`` is below 1.
            MemoryError: A single structure needs more memory than there is.
        """
        found = self._evaluations(structures, batch_size, progress)
        return [evaluation.results for evaluation in found]

    def iterate(
        self, structures: Iterable[ase.Atoms], batch_size: int = 32, progress: bool = False
    ) -> Iterator[Evaluation]:
        """Return an iterator over the pairs (results, extras) of many structures.

        They are computed batch by batch as they are asked for; neither all structures nor all
        results are held. Arguments and errors are those of :meth:`evaluate`.
        """
        return map(_with_extras, self._evaluations(structures, batch_size, progress))

    def _evaluations(
        self, structures: Iterable[ase.Atoms], batch_size: int, progress: bool
    ) -> Iterator[Evaluation]:
        if isinstance(structures, ase.Atoms):
            raise ValueError("evaluate takes a list of structures; for one, write [atoms].")
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
                # Only here has the failed computation let go of its memory.
                if found is None:
                    size, batch = len(first) // 2, first + batch
                    if not told:
                        told = True
                        warnings.warn(
                            f"A batch of {len(first)} is too large: {reason} Going on with "
                            f"{size} or less at once.",
                            stacklevel=2,
                        )
                    continue
                yield from found
                bar.update(len(first))


def _with_extras(found: Evaluation) -> Evaluation:
    """Compute the extras, before the embeddings of many structures heap up."""
    len(found.extras)
    return found


@torch.inference_mode(False)  # weights made in that mode cannot be used outside of it
def _sources(model: Any) -> list[Source]:
    """Return the sources of a model or of a committee, or raise a TypeError for anything else."""
    single = isinstance(model, str | bytes | Mapping | EnergyModel)
    several = isinstance(model, Iterable) and not single
    sources = list(model) if several else [model]
    for source in sources:
        if not isinstance(source, str | Path | EnergyModel):
            raise TypeError(
                f"model is {model!r:.200}; give the name of a bundled model, the path of a model "
                "file, an EnergyModel, or a list of these."
            )
    return sources


def _load(source: Source, device: torch.device, dtype: str | None) -> EnergyModel:
    """Return a model of the calculator's own."""
    weights_type = None if dtype is None else _DTYPES[dtype]
    if isinstance(source, EnergyModel):
        model = copy.deepcopy(source).to(device=device, dtype=weights_type)
        model.measure_isolated_atoms()  # in the type that it now has
        return model.eval().requires_grad_(False)
    return load_model(source, device=device, dtype=weights_type)
