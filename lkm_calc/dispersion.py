"""D3 dispersion on top of a model, through the package dftd3: ``pip install lkm-calc[d3]``.

A model knows of dispersion what its labels know, within its cutoff. D3 belongs on top of

- labels without dispersion, such as the PBE ones of revised MD17, with the functional of the labels
  and the damping of Becke and Johnson, which is fitted to be added to it.

It does not belong on top of

- labels that hold it already: D3 or D4 corrections, functionals with non-local correlation (VV10)
  or with -D in their name, GFN2-xTB, coupled cluster. It would count double;
- labels of another functional than is named: each has its own damping.

Whether a model with a short cutoff needs the long range at all is for tests to tell; within one
small molecule D3 hardly changes the forces.
"""

from collections.abc import Sequence
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from dftd3.ase import DFTD3
from dftd3.interface import RationalDampingParam
from numpy.typing import NDArray


class DispersionCalculator(Calculator):
    """The sum of a calculator and its dispersion correction: see :func:`with_d3`.

    ASE's ``SumCalculator`` lacks ``free_energy`` and ``get_hessian``, and puts keys into its
    results that ``atoms.get_properties`` refuses.

    Args:
        calculator: That of the model, kept as ``calculator``.
        correction: That of the dispersion, kept as ``correction``.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012

    def __init__(self, calculator: Calculator, correction: Calculator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calculator: Any = calculator
        self.correction: Any = correction

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute both, and add what both have."""
        super().calculate(atoms, list(properties), list(system_changes))  # type: ignore[no-untyped-call]
        if self.atoms is None:
            raise ValueError("calculate was called without atoms; attach them or pass them.")
        # The correction divides by a volume wherever a direction repeats.
        completed = self.atoms.copy()
        completed.cell = completed.cell.complete() if completed.pbc.any() else completed.cell
        self.calculator.get_property("forces", self.atoms)
        self.correction.get_property("forces", completed)
        first, second = self.calculator.results, self.correction.results
        self.results = {
            name: first[name] + second[name]
            for name in self.implemented_properties
            if name in first and name in second
        }

    def get_hessian(self, atoms: ase.Atoms) -> NDArray[np.float64]:
        """Return the sum of both Hessians in eV/Å², (3·atoms, 3·atoms), for vibrations."""
        total: NDArray[np.float64] = self.calculator.get_hessian(atoms)
        total = total + self.correction.get_hessian(atoms)
        return total

    @property
    def extras(self) -> Any:
        """What the model's calculator tells besides its results."""
        return self.calculator.extras


def with_d3(calculator: Calculator, functional: str) -> DispersionCalculator:
    """Return a calculator that adds D3(BJ) dispersion to another one.

    Energies, forces and, for periodic structures, stress are summed. S. Grimme, S. Ehrlich and L.
    Goerigk, J. Comput. Chem. 32, 1456 (2011), with three-body terms.

    Args:
        calculator: Any, such as an :class:`lkm_calc.LKMCalculator`.
        functional: That of the labels, as "PBE".

    Raises:
        ValueError: There are no parameters for the functional.
    """
    try:
        RationalDampingParam(method=functional)  # type: ignore[no-untyped-call, unused-ignore]
    except RuntimeError as error:
        raise ValueError(
            f"D3(BJ) has no parameters for the functional {functional!r} ({error}). Name that of "
            "the labels as dftd3 does, for example 'PBE' or 'B3LYP'."
        ) from error
    return DispersionCalculator(calculator, DFTD3(method=functional, damping="d3bj"))
