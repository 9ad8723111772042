"""A potential for i-PI: the beads of a ring polymer, or many structures, in one batch.

Options: ``template``, a file that ASE reads with the atoms in i-PI's order; ``model``, ``device``
and ``dtype`` as for LKMCalculator. Lengths and energies are converted by i-PI's base class.
"""

from typing import Any

import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress
from ipi.pes._ase import ASEDriver

from lkm_calc import LKMCalculator

__DRIVER_NAME__ = "lkm"
__DRIVER_CLASS__ = "LKMDriver"


class LKMDriver(ASEDriver):
    """Energies, forces and virials of one structure or a list of them."""

    def __init__(
        self,
        template: str,
        model: str,
        device: str = "auto",
        dtype: str = "float64",
        **kwargs: Any,
    ) -> None:
        self.options = model, device, dtype
        super().__init__(template, **kwargs)

    def check_parameters(self) -> None:
        """Load template and model; called once by the base class."""
        super().check_parameters()
        self.ase_calculator = LKMCalculator(*self.options)

    def compute(self, cell: Any, pos: Any) -> Any:
        """Return energy, forces, virial and extras in atomic units; lists of them for lists."""
        if not isinstance(cell, list):
            return self.compute([cell], [pos])[0]
        structures = []
        for h, q in zip(cell, pos, strict=True):
            structure = self.template_ase.copy()
            structure.cell[:], structure.positions[:] = self.convert_units(h, q)
            structures.append(structure)
        results = self.ase_calculator.evaluate(structures, batch_size=len(structures))
        for result in results:
            # i-PI takes a full matrix, and zeros of a molecule that is not periodic.
            result["stress"] = voigt_6_to_full_3x3_stress(result.get("stress", np.zeros(6)))
        wanted = ("energy", "forces", "stress")
        return [
            self.post_process({name: result[name] for name in wanted}, structure)
            for result, structure in zip(results, structures, strict=True)
        ]
