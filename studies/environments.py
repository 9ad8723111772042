"""Environment of each atom of a molecule, one, two and three bonds away."""

from collections.abc import Mapping

import ase
import networkx as nx  # type: ignore[import-untyped]
import numpy as np
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

HOPS: Mapping[str, str] = {
    "neighbours": "bonded neighbours",
    "ring": "in a ring",
    "second": "N or O two bonds away",
    "third": "N or O three bonds away",
}
"""What :func:`environments` tells of an atom, in words."""

STRETCH = 1.1
"""A pair closer than this times the sum of the covalent radii is bonded. C–H needs 1.02; from 1.15
on, carbon atoms across small rings count as bonded."""


def bonds(atoms: ase.Atoms) -> NDArray[np.int64]:
    """Return the bonds, each in both directions, (2, bonds)."""
    found: NDArray[np.int64] = np.stack(
        neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=STRETCH))
    )
    return found


def environments(atoms: ase.Atoms) -> dict[str, NDArray[np.int64]]:
    """Return for each key of HOPS what it is of every atom, (atoms).

    A number of neighbours, or 1 for yes and 0 for no. An atom is in a ring if one of its bonds can
    be cut without the molecule falling apart.
    """
    i, j = bonds(atoms)
    n = len(atoms)
    graph = nx.Graph(zip(i.tolist(), j.tolist(), strict=True))
    graph.remove_edges_from(list(nx.bridges(graph)))
    ring = np.zeros(n, np.int64)
    ring[[atom for atom, degree in graph.degree if degree]] = 1
    steps = shortest_path(coo_array((np.ones(len(i)), (i, j)), (n, n)).tocsr(), unweighted=True)
    hetero = np.isin(atoms.numbers, (7, 8))
    return {
        "neighbours": np.bincount(i, minlength=n),
        "ring": ring,
        "second": (steps == 2)[:, hetero].any(1).astype(np.int64),
        "third": (steps == 3)[:, hetero].any(1).astype(np.int64),
    }
