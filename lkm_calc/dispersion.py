"""D3 dispersion correction for a model, using the package dftd3: ``pip install lkm-calc[d3]``.

Add D3 if the labels of the training set lack dispersion, such as the PBE labels of revised MD17,
with the functional of the labels and Becke-Johnson damping.

Do not add it to

- labels that include dispersion: D3 or D4 corrections, functionals with non-local correlation
  (VV10) or with -D in their name, GFN2-xTB, coupled cluster; it would be counted twice;
- labels of a different functional, which has different damping parameters.

Within a single small molecule D3 hardly changes the forces. Test whether the long range beyond the
cutoff of the model matters for your system.
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
    """The sum of a calculator and its dispersion correction, see :func:`with_d3`.

    ASE's ``SumCalculator`` lacks ``free_energy`` and ``get_hessian``, and adds keys to its results
    that ``atoms.get_properties`` rejects.

    Args:
        calculator: Calculator of the model, available as ``calculator``.
        correction: Calculator of the dispersion, available as ``correction``.
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
        """Compute both and add the properties that both provide."""
        super().calculate(atoms, list(properties), list(system_changes))  # type: ignore[no-untyped-call]
        if self.atoms is None:
            raise ValueError("calculate was called without atoms; pass or attach an Atoms object.")
        # The correction divides by the volume if any direction is periodic.
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
        """Uncertainty measures of the model, see :class:`lkm_calc.LKMCalculator`."""
        return self.calculator.extras


def with_d3(calculator: Calculator, functional: str) -> DispersionCalculator:
    """Return a calculator that adds D3(BJ) dispersion to another one.

    Energies, forces and, for periodic structures, stress are summed. S. Grimme, S. Ehrlich and L.
    Goerigk, J. Comput. Chem. 32, 1456 (2011), with three-body terms.

    Args:
        calculator: Any calculator, for example an :class:`lkm_calc.LKMCalculator`.
        functional: Functional of the labels, for example "PBE".

    Raises:
        ValueError: There are no parameters for the functional.
    """
    try:
        RationalDampingParam(method=functional)  # type: ignore[no-untyped-call, unused-ignore]
    except RuntimeError as error:
        raise ValueError(
            f"D3(BJ) has no parameters for the functional {functional!r} ({error}). Use the name "
            "of the functional of the labels in dftd3, for example 'PBE' or 'B3LYP'."
        ) from error
    return DispersionCalculator(calculator, DFTD3(method=functional, damping="d3bj"))
