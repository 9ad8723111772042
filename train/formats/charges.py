"""Total charges and spins that files tell of, which no model here takes into account."""

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
"""Entries of ``atoms.info`` under which the field keeps them."""


def warn_of_mixed_states(source: str, images: Sequence[Atoms]) -> None:
    """Warn where one composition comes with several total charges or spins.

    A model sees elements and positions alone: an ion and its molecule are one structure with two
    energies to it.
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
                "%s: %s of %s differ: %s. A model cannot tell them apart; train on one of them.",
                source,
                what,
                mixed[0],
                told,
            )


def _state(atoms: Atoms, names: Sequence[str]) -> Hashable:
    """Return the entry of a structure under one of the names, None where it has none."""
    for name in names:
        value = atoms.info.get(name)
        if value is not None and np.ndim(value) == 0:
            number: Hashable = np.asarray(value).item()
            return number
    return None
