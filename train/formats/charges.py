"""Warnings about total charges and spins in files, which the models cannot distinguish."""

import logging
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from ase import Atoms

logger = logging.getLogger(__name__)

KEYS = {
    "total charges": ("charge", "total_charge", "Charge"),
    "spins": ("spin", "multiplicity", "spin_multiplicity", "total_spin"),
}
"""Usual names in ``atoms.info``."""


def warn_of_mixed_states(source: str, images: Sequence[Atoms]) -> None:
    """Warn if one composition occurs with several total charges or spins.

    A model reads only elements and positions, so an ion and its neutral molecule would be the same
    structure with two energies.
    """
    formulas = [atoms.get_chemical_formula() for atoms in images]
    for what, names in KEYS.items():
        states = [_state(atoms, names) for atoms in images]
        counts = Counter(zip(formulas, states, strict=True))
        mixed = [f for f, times in Counter(formula for formula, _ in counts).items() if times > 1]
        if mixed:
            told = ", ".join(
                f"{state} ({number} frames)"
                for (formula, state), number in sorted(counts.items(), key=str)
                if formula == mixed[0]
            )
            logger.warning(
                "%s: %s of %s differ: %s. A model cannot tell them apart; train on one state only.",
                source,
                what,
                mixed[0],
                told,
            )


def _state(atoms: Atoms, names: Sequence[str]) -> Hashable:
    """Return the entry of a structure under one of the names, or None."""
    for name in names:
        value = atoms.info.get(name)
        if value is not None and np.ndim(value) == 0:
            number: Hashable = np.asarray(value).item()
            return number
    return None
