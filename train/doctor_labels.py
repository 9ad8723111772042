"""Whether energies, forces and positions belong together: two tests, and the units they imply."""

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from lkm_calc.units import BOHR, HARTREE, KCAL_PER_MOL

from .conversion import ENERGY_UNITS, FORCE_UNITS, LENGTH_UNITS
from .edges import edges_of
from .frames import Frames

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_PAIR_FRAMES = 2000
"""Frames in which nearest neighbours are sought; the search is quadratic, 2000 take a second."""
RUN = 10
"""Consecutive frames taken together when a file has more: in a trajectory they are close."""
NEIGHBOURS = 3
"""Nearest frames compared with each frame."""
MAX_DISTANCES = 500
"""Interatomic distances by which frames are compared; a sample of them finds neighbours too."""
MAX_DISPLACEMENT = 0.6
"""Largest displacement in Å of an atom between frames that are compared. The closest quarter of
the pairs of the largest rMD17 molecules, 1000 frames each, reaches to 0.57 Å."""
MIN_DISPLACEMENT = 1e-3
"""Displacement in Å below which frames are the same and a pair of them says nothing."""
MIN_PAIRS = 25
"""Pairs below which no verdict is given; 25 pairs without relation correlate by 0.2."""


class PairTest(NamedTuple):
    """Energy differences of similar frames beside the work of the forces between them."""

    differences: Floats
    """(pairs) ΔE in eV."""
    work: Floats
    """(pairs) −½(F_a + F_b)·ΔR in eV, after the rigid motion is removed."""
    displacement: float
    """Median over the pairs of the largest displacement of an atom, Å."""
    slope: float
    """Least-squares slope of ΔE against the work; 1 where forces are minus the gradient."""
    correlation: float
    """Correlation of the two about zero."""
    stiffness: float
    """Σ|ΔF|² / −Σ ΔF·ΔR, a mean force constant in eV/Å² in which energies have no part."""


def compare_pairs(frames: Frames) -> PairTest | None:
    """Compare ΔE with the work of the mean force for the most similar pairs of frames.

    The mean of both forces makes the work exact in a harmonic potential, whatever the distance.
    Frames are paired within one sequence of atoms and superposed (Kabsch 1976); periodic ones are
    left out, as they cannot be turned.

    Returns:
        None where fewer than MIN_PAIRS pairs are similar enough to tell.
    """
    if frames.forces is None:
        return None
    parts = [_pairs_of_group(frames, frames.forces, group) for group in _groups(frames)]
    if not parts:
        return None
    difference, work, displacement, change, projection = np.concatenate(parts, axis=1)
    order = np.argsort(displacement)
    order = order[displacement[order] > MIN_DISPLACEMENT]
    order = order[: max(MIN_PAIRS, len(order) // 4)]
    order = order[displacement[order] < MAX_DISPLACEMENT]
    if len(order) < MIN_PAIRS:
        return None
    x, y = work[order], difference[order]
    slope, correlation = _through_zero(x, y)
    stiffness = float(change[order].sum() / _nonzero(-projection[order].sum()))
    return PairTest(y, x, float(np.median(displacement[order])), slope, correlation, stiffness)


def _through_zero(x: Floats, y: Floats) -> tuple[float, float]:
    """Return slope and correlation of y against x about zero."""
    xx, yy, xy = float(x @ x), float(y @ y), float(x @ y)
    return xy / _nonzero(xx), xy / _nonzero(float(np.sqrt(xx * yy)))


def _nonzero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300


def _groups(frames: Frames) -> list[Ints]:
    """Return the frames of each sequence of atoms, non-periodic, two or more of each."""
    members: dict[bytes, list[int]] = {}
    for f in _sample(len(frames)).tolist():
        if frames.pbc is None or not frames.pbc[f].any():
            key = frames.numbers[frames.starts[f] : frames.starts[f + 1]].tobytes()
            members.setdefault(key, []).append(f)
    return [
        np.array(group)
        for group in members.values()
        if len(group) > 1 and frames.sizes[group[0]] > 1
    ]


def _sample(n_frames: int) -> Ints:
    """Return all frames, or runs of consecutive ones spread evenly over them."""
    if n_frames <= MAX_PAIR_FRAMES:
        return np.arange(n_frames)
    first = np.linspace(0, n_frames - RUN, MAX_PAIR_FRAMES // RUN).astype(np.int64)
    return np.unique(first[:, None] + np.arange(RUN))


def _pairs_of_group(frames: Frames, forces: Floats, group: Ints) -> Floats:
    """Return ΔE, work, largest displacement, |ΔF|² and ΔF·ΔR of near frames, (5, pairs)."""
    rows = frames.starts[group][:, None] + np.arange(frames.sizes[group[0]])
    positions, force = frames.positions[rows], forces[rows]
    positions = positions - positions.mean(1, keepdims=True)
    first, second = _nearest(positions)
    rotation = _superpose(positions[second], positions[first])
    moved = positions[second] @ rotation - positions[first]
    turned = force[second] @ rotation
    change = turned - force[first]
    return np.stack(
        [
            frames.energies[group][second] - frames.energies[group][first],
            -0.5 * ((turned + force[first]) * moved).sum((1, 2)),
            np.linalg.norm(moved, axis=-1).max(1),
            (change**2).sum((1, 2)),
            (change * moved).sum((1, 2)),
        ]
    )


def _nearest(positions: Floats) -> tuple[Ints, Ints]:
    """Return pairs of frames that are nearest neighbours in their interatomic distances."""
    n_frames, n_atoms = positions.shape[:2]
    i, j = np.triu_indices(n_atoms, 1)
    chosen = np.random.default_rng(0).permutation(len(i))[:MAX_DISTANCES]
    distances = np.linalg.norm(positions[:, i[chosen]] - positions[:, j[chosen]], axis=-1)
    distances -= distances.mean(0)
    norms = (distances**2).sum(1)
    squares = norms[:, None] + norms - 2 * distances @ distances.T
    np.fill_diagonal(squares, np.inf)
    k = min(NEIGHBOURS, n_frames - 1)
    near = np.argpartition(squares, k - 1, axis=1)[:, :k]
    pairs = np.stack([np.repeat(np.arange(n_frames), k), near.ravel()])
    first, second = np.unique(np.sort(pairs, axis=0), axis=1)
    return first, second


def _superpose(moving: Floats, fixed: Floats) -> Floats:
    """Return the rotations that best lay centred structures onto others, (pairs, 3, 3)."""
    left, _, right = np.linalg.svd(np.einsum("pni,pnj->pij", moving, fixed))
    # A reflection would fit better at times, but no motion of a molecule is one.
    left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    rotation: Floats = left @ right
    return rotation


POTENTIAL_CUTOFF = 5.0
"""Reach in Å of the pair potential fitted to the forces; as the basis below, tried on rMD17."""
BASIS = 20
"""Gaussians between 0.6 Å and the reach; with 10 or 16 some rMD17 energies were not followed."""
RIDGE = 1e-3
"""Regularisation in units of the mean diagonal of the normal matrix."""
MAX_FIT_ATOMS = 4000
"""Atoms whose forces are fitted; more change the third digit only."""
MAX_TEST_FRAMES = 500
"""Frames on which the fitted potential is tested."""
MIN_TEST_FRAMES = 25
"""Test frames below which no verdict is given."""
MAX_FEATURES = 1200
"""Coefficients beyond which the fit is left out: ten elements have 1100."""


class PotentialTest(NamedTuple):
    """What a pair potential fitted to the forces of some frames says of the others."""

    explained: float
    """Share of the square of the forces that it predicts, 0 for unrelated ones."""
    correlation: float
    """Correlation of its energies with the labels, compositions removed."""
    ratio: float
    """Spread of the labels over the spread of its energies; 1 for matching units."""
    stiffness: float
    """Mean of its force constants in eV/Å², in which labels of the energy have no part."""
    n_frames: int
    """Frames tested."""


def compare_potential(frames: Frames) -> PotentialTest | None:
    """Fit a pair potential to forces and compare its energies with the labels of other frames.

    The fit never sees an energy, so that energies and forces agree only if both belong to these
    positions. It needs no similar frames and serves flexible, periodic and mixed sets.

    Returns:
        None where the file is too small, or has too many elements, for the fit.
    """
    elements = np.unique(frames.numbers)
    n_features = len(elements) * (len(elements) + 1) // 2 * BASIS
    order = np.random.default_rng(0).permutation(len(frames))
    n_fit = int(np.searchsorted(np.cumsum(frames.sizes[order]), MAX_FIT_ATOMS)) + 1
    n_fit = min(n_fit, len(order) // 2)
    fit, held = np.sort(order[:n_fit]), np.sort(order[n_fit:][:MAX_TEST_FRAMES])
    too_small = 3 * int(frames.sizes[fit].sum()) < 3 * n_features
    if frames.forces is None or too_small or len(held) < MIN_TEST_FRAMES:
        return None
    if n_features > MAX_FEATURES:
        return None
    coefficients = _fit_forces(frames.select(fit), elements)
    explained, predicted = _predict(frames.select(held), elements, coefficients)
    counts = (frames.select(held).numbers[:, None] == elements).astype(np.float64)
    counts = np.add.reduceat(counts, frames.select(held).starts[:-1])
    predicted, labels = (_residual(counts, e) for e in (predicted, frames.energies[held]))
    _, correlation = _through_zero(predicted, labels)
    ratio = float(np.sqrt((labels @ labels) / _nonzero(float(predicted @ predicted))))
    stiffness = _mean_stiffness(frames.select(held[:STIFFNESS_FRAMES]), elements, coefficients)
    return PotentialTest(explained, correlation, ratio, stiffness, len(held))


STIFFNESS_FRAMES = 25
"""Frames over which the force constants of the potential are averaged."""


def _mean_stiffness(frames: Frames, elements: Ints, coefficients: Floats) -> float:
    """Return −Σ ΔF·δ / Σ|δ|² for small random displacements δ, the mean force constant."""
    step = np.random.default_rng(0).normal(0, 1e-3, frames.positions.shape)
    moved = replace(frames, positions=frames.positions + step)
    work = 0.0
    for f in range(len(frames)):
        change = _design(moved, f, elements)[1] - _design(frames, f, elements)[1]
        rows = slice(frames.starts[f], frames.starts[f + 1])
        work -= float((change @ coefficients) @ step[rows].ravel())
    return work / float((step**2).sum())


def _residual(counts: Floats, energies: Floats) -> Floats:
    """Return energies less the best sum of energies of their atoms, median removed first."""
    centred = energies - np.median(energies)
    residual: Floats = centred - counts @ np.linalg.lstsq(counts, centred, rcond=None)[0]
    return residual


def _fit_forces(frames: Frames, elements: Ints) -> Floats:
    """Return the coefficients of the pair potential by regularised least squares."""
    n_features = len(elements) * (len(elements) + 1) // 2 * BASIS
    normal, right = np.zeros((n_features, n_features)), np.zeros(n_features)
    for f in range(len(frames)):
        _, design = _design(frames, f, elements)
        force = _forces_of(frames, f)
        normal += design.T @ design
        right += design.T @ force
    normal[np.diag_indices_from(normal)] += RIDGE * _nonzero(float(np.trace(normal))) / len(normal)
    return np.asarray(np.linalg.solve(normal, right), dtype=np.float64)


def _predict(frames: Frames, elements: Ints, coefficients: Floats) -> tuple[float, Floats]:
    """Return the explained share of the forces, and the energies, (frames)."""
    energies = np.empty(len(frames))
    wrong = total = 0.0
    for f in range(len(frames)):
        energy_design, design = _design(frames, f, elements)
        force = _forces_of(frames, f)
        energies[f] = energy_design @ coefficients
        wrong += float(((design @ coefficients - force) ** 2).sum())
        total += float(force @ force)
    return 1 - wrong / _nonzero(total), energies


def _forces_of(frames: Frames, f: int) -> Floats:
    """Return the forces of a frame, (3N)."""
    rows: Floats = np.asarray(frames.forces)[frames.starts[f] : frames.starts[f + 1]].ravel()
    return rows


def _design(frames: Frames, f: int, elements: Ints) -> tuple[Floats, Floats]:
    """Return the basis functions of a frame, (features), and minus their gradient, (3N, features).

    Feature: a Gaussian of the distance for each pair of elements.
    """
    rows = slice(frames.starts[f], frames.starts[f + 1])
    kind = np.searchsorted(elements, frames.numbers[rows])
    n_kinds = len(elements) * (len(elements) + 1) // 2
    edges, vectors = edges_of(frames, f, POTENTIAL_CUTOFF)
    source, target = edges.edge_index
    distances = np.maximum(np.linalg.norm(vectors, axis=1), 1e-6)
    low, high = np.sort([kind[source], kind[target]], axis=0)
    pair = high * (high + 1) // 2 + low
    centres = np.linspace(0.6, POTENTIAL_CUTOFF, BASIS)
    width = centres[1] - centres[0]
    offset = (distances[:, None] - centres) / width
    values = np.exp(-0.5 * offset**2)
    energy = csr_matrix(
        (np.full(len(pair), 0.5), (pair, np.arange(len(pair)))), shape=(n_kinds, len(pair))
    )
    row = (3 * target[:, None] + np.arange(3)) * n_kinds + pair[:, None]
    column = np.repeat(np.arange(len(pair)), 3)
    unit = vectors / distances[:, None]
    gradient = csr_matrix(
        (unit.ravel(), (row.ravel(), column)), shape=(3 * len(kind) * n_kinds, len(pair))
    )
    slope = gradient @ (values * offset / width)
    return (energy @ values).ravel(), slope.reshape(3 * len(kind), -1)


# The units that files have, of those that are known.
_ENERGY_UNITS = {n: ENERGY_UNITS[n] for n in ("eV", "kcal/mol", "kJ/mol", "Hartree", "meV")}
_FORCE_UNITS = {
    name: FORCE_UNITS[name]
    for name in (
        *("eV/Å", "kcal/mol/Å", "kJ/mol/Å", "kJ/mol/nm"),
        *("Hartree/Bohr", "Hartree/Å", "eV/Bohr", "meV/Å"),
    )
}
_LENGTH_UNITS = {name: LENGTH_UNITS[name] for name in ("Å", "Bohr", "nm")}
_CONVERSIONS = {
    "": (1.0, 1.0),
    " converted as if they were kcal/mol": (KCAL_PER_MOL, KCAL_PER_MOL),
    " converted as if they were Hartree": (HARTREE, HARTREE / BOHR),
}


class Evidence(NamedTuple):
    """A figure whose value is known if units are right, and how it changes with them."""

    measured: float
    expected: float
    tolerance: float
    """Standard deviation of its logarithm."""
    powers: tuple[int, int, int]
    """Powers of the units of energy, force and length to which the expectation is proportional."""


_RARE = {"meV": 1.0, "meV/Å": 1.0, "Hartree/Å": 0.5, "eV/Bohr": 0.5, "kJ/mol/nm": 0.3}
"""Handicap of units that files seldom have, in squared standard deviations."""
_CONVERTED = 1.0
"""Handicap of a conversion made on a wrong premise."""
_AMBIGUOUS = 1.0
"""Difference of two misfits within which both guesses are named."""


def guess_units(evidence: list[Evidence]) -> list[tuple[str, str, str]]:
    """Return the units of energies, forces and positions that the figures fit best.

    Conversions that a reader made on a wrong premise are among the guesses. What no figure speaks
    of is taken to be right. A second guess that fits nearly as well is returned too.
    """
    misfits: dict[tuple[str, str, str], float] = {}
    choices = product(
        _ENERGY_UNITS.items(), _FORCE_UNITS.items(), _LENGTH_UNITS.items(), _CONVERSIONS.items()
    )
    for (energy, e), (force, f), (length, r), (conversion, (by_e, by_f)) in choices:
        sizes = (e / by_e, f / by_f, r)
        misfit = sum(_misfit(item, sizes) for item in evidence)
        # Of guesses that fit alike the one with fewest units wrong.
        misfit += 0.2 * sum(abs(np.log(size)) > 0.01 for size in sizes)
        misfit += _CONVERTED * bool(conversion) + _RARE.get(energy, 0.0) + _RARE.get(force, 0.0)
        name = (_with(energy, sizes[0], conversion), _with(force, sizes[1], conversion), length)
        misfits[name] = min(misfit, misfits.get(name, np.inf))
    best, second = sorted(misfits, key=lambda name: misfits[name])[:2]
    return [best, second] if misfits[second] - misfits[best] < _AMBIGUOUS else [best]


def _misfit(item: Evidence, sizes: tuple[float, float, float]) -> float:
    """Return the squared deviation of a figure under a guess, in standard deviations."""
    scale = np.prod([size**power for size, power in zip(sizes, item.powers, strict=True)])
    return float((np.log(item.measured / (item.expected * scale)) / item.tolerance) ** 2)


def _with(unit: str, size: float, conversion: str) -> str:
    """Name a unit, with the conversion that spoilt it; one that fits leaves eV or eV/Å."""
    if abs(np.log(size)) < 0.01:
        return "eV/Å" if "/Å" in unit or "Bohr" in unit else "eV"
    return unit + conversion
