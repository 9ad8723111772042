"""A cheap reference method for tests: ethanol made of springs."""

import os
import signal

from ase.calculators.calculator import Calculator, CalculatorError, all_changes

from ...support import spring_labels


class Springs(Calculator):
    """Energies and forces of springs between all atoms; can fail or be interrupted.

    Args:
        fails: Numbers of the calls, from 1, that raise a CalculatorError.
        interrupted: Number of the call during which the process gets a SIGTERM.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012
    calls = 0
    fails: tuple[range, ...] = ()
    interrupted = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        super().calculate(atoms, properties, system_changes)
        Springs.calls += 1
        if any(Springs.calls in calls for calls in Springs.fails):
            raise CalculatorError("no convergence")
        if Springs.calls == Springs.interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
        energies, forces = spring_labels(self.atoms.positions[None])
        self.results = {"energy": energies[0] + 4321.0, "forces": forces[0]}


class Failing(Calculator):
    """A method that never converges."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        raise CalculatorError("no convergence")


NAME, FAILING = f"{__name__}:Springs", f"{__name__}:Failing"
