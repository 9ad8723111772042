"""Edges of single frames, periodic or not."""

from typing import NamedTuple

import numpy as np
from ase.geometry import complete_cell
from numpy.typing import NDArray

from lkm_calc.graph import EdgeList, neighbour_list

from .frames import Frames


class FrameEdges(NamedTuple):
    """Neighbour list of a frame, with atom indices within the frame, and edge vectors."""

    edges: EdgeList
    vectors: NDArray[np.float64]
    """(edges, 3) from source to target, in Å."""


def edges_of(frames: Frames, f: int, cutoff: float) -> FrameEdges:
    """Return all pairs of a frame within the cutoff (Å), including periodic images.

    Zero cell vectors in non-periodic directions are completed.

    Raises:
        ValueError: The neighbour search cannot handle the structure.
    """
    positions = frames.positions[frames.starts[f] : frames.starts[f + 1]]
    box, pbc = np.eye(3), np.zeros(3, dtype=bool)
    if frames.cells is not None and frames.pbc is not None and frames.pbc[f].any():
        box, pbc = complete_cell(frames.cells[f]), frames.pbc[f]
    edges = neighbour_list(positions, cutoff, box, pbc)
    source, target = edges.edge_index
    return FrameEdges(edges, positions[target] - positions[source] + edges.shifts @ box)
