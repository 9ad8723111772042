"""Kept neighbour lists: the edges of a new search, to the last one and in the same order."""

import ase
import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet

from lkm_calc import LKMCalculator
from lkm_calc.graph import neighbours, skin
from lkm_calc.graph.neighbours import neighbour_list
from lkm_calc.graph.skin import VerletList

from ..support import crystal, rattled, small_model

CUTOFF = 3.0


@pytest.fixture
def searches(monkeypatch):
    """Count the searches that kept lists make."""
    found = []

    def counted(*arguments):
        found.append(1)
        return neighbours.candidates(*arguments)

    monkeypatch.setattr(skin, "candidates", counted)
    return found


def geometry(atoms):
    return atoms.get_positions(), np.asarray(atoms.cell.complete()), atoms.pbc.copy()


def assert_as_new(kept, atoms, cutoff=CUTOFF):
    assert_same(kept, *geometry(atoms), cutoff)


def assert_same(kept, points, box, pbc, cutoff=CUTOFF):
    for found, expected in zip(
        kept(points, cutoff, box, pbc), neighbour_list(points, cutoff, box, pbc), strict=True
    ):
        assert np.array_equal(found, expected)


def box_of_atoms(pbc=True, seed=0):
    """Return a triclinic cell of 24 atoms, larger than the cut-off."""
    atoms = crystal(seed, pbc) * (3, 2, 1)
    atoms.rattle(0.1, seed=seed)
    return atoms


STRUCTURES = {
    "molecule": lambda: rattled("C6H6"),
    "crystal": crystal,
    "box": box_of_atoms,
    "slab": lambda: box_of_atoms([True, True, False]),
    "chain": lambda: box_of_atoms([False, True, False]),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_random_walk_with_few_searches(name, searches):
    atoms, rng = STRUCTURES[name](), np.random.default_rng(0)
    kept = VerletList(CUTOFF, skin=0.5)
    for _ in range(60):
        atoms.positions += rng.normal(0, 0.015, atoms.positions.shape)
        assert_as_new(kept, atoms)
    assert 1 < len(searches) < 15


@pytest.mark.parametrize("name", STRUCTURES)
def test_moves_through_the_cell_and_wrapping(name, searches):
    atoms, rng = STRUCTURES[name](), np.random.default_rng(0)
    kept = VerletList(CUTOFF, skin=0.5)
    assert_as_new(kept, atoms)
    for _ in range(20):
        atoms.positions += rng.normal(0, 0.01, atoms.positions.shape)
        images = rng.integers(-2, 3, atoms.positions.shape) * atoms.pbc
        atoms.positions += images @ atoms.cell.complete()
        assert_as_new(kept, atoms)
        atoms.wrap()
        assert_as_new(kept, atoms)
    assert len(searches) == 1


def test_a_move_by_a_vector_of_a_direction_that_does_not_repeat_is_a_move(searches):
    atoms = box_of_atoms([True, True, False])
    kept = VerletList(CUTOFF, skin=0.5)
    assert_as_new(kept, atoms)
    atoms.positions[3] += atoms.cell[2]
    assert_as_new(kept, atoms)
    assert len(searches) == 2


def test_a_cell_that_breathes_and_shears_with_its_atoms(searches):
    atoms, rng = box_of_atoms(), np.random.default_rng(0)
    kept = VerletList(CUTOFF, skin=0.5)
    start = atoms.cell.copy()
    for _ in range(40):
        strain = np.eye(3) + rng.normal(0, 0.01, (3, 3))
        atoms.set_cell(start @ strain, scale_atoms=True)
        atoms.positions += rng.normal(0, 0.002, atoms.positions.shape)
        atoms.wrap()
        assert_as_new(kept, atoms)
    assert len(searches) < 10


CHANGES = {
    "a cell that shrinks": lambda atoms: atoms.set_cell(atoms.cell * 0.8, scale_atoms=True),
    "a cell without its atoms": lambda atoms: atoms.set_cell(atoms.cell * 0.9),
    "an atom more": lambda atoms: atoms.append("C"),
    "an atom less": lambda atoms: atoms.__delitem__(3),
    "periodicity": lambda atoms: atoms.set_pbc([True, False, True]),
    "a jump": lambda atoms: atoms.positions.__setitem__(0, atoms.positions[0] + 0.9),
    "order": lambda atoms: atoms.set_positions(atoms.positions[::-1]),
    "a turned cell": lambda atoms: atoms.rotate(40, (1, 2, 3), rotate_cell=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_that_take_a_new_search(change, searches):
    atoms = box_of_atoms()
    kept = VerletList(CUTOFF, skin=0.5)
    assert_as_new(kept, atoms)
    CHANGES[change](atoms)
    assert_as_new(kept, atoms)
    # A turned cell is not stretched: its atoms have moved with it.
    assert len(searches) == (1 if change == "a turned cell" else 2)


@pytest.mark.parametrize("changed", [0, 1, 2], ids=["positions", "cell", "pbc"])
def test_arrays_changed_in_place(changed, searches):
    arrays = geometry(box_of_atoms())
    kept = VerletList(CUTOFF, skin=0.5)
    for _ in range(2):
        assert_same(kept, *arrays)
        arrays[changed][-1] = arrays[changed][0] * 0.9 + 0.1 if changed < 2 else False
    assert len(searches) == 2


def test_atoms_that_move_half_of_the_skin_toward_each_other(searches):
    # Two atoms just beyond cutoff + skin that meet at the cut-off: the worst there can be.
    atoms = ase.Atoms("H2", [[0, 0, 0], [CUTOFF + 0.5 + 1e-4, 0, 0]])
    kept = VerletList(CUTOFF, skin=0.5)
    assert_as_new(kept, atoms)
    for moved, made in ((0.24, 1), (0.0101, 2)):
        atoms.positions[0, 0] += moved
        atoms.positions[1, 0] -= moved
        assert_as_new(kept, atoms)
        assert len(searches) == made
    points, box, pbc = geometry(atoms)
    assert kept(points, CUTOFF, box, pbc).edge_index.shape == (2, 2)


def test_pairs_right_on_the_cutoff():
    # Distances of a lattice are the cut-off but for rounding, which must fall alike.
    atoms = bulk("Cu", "fcc", a=CUTOFF / np.sqrt(2), cubic=True) * (2, 2, 2)
    rng = np.random.default_rng(0)
    kept = VerletList(CUTOFF, skin=0.5)
    assert_as_new(kept, atoms)
    for _ in range(20):
        atoms.positions += rng.normal(0, 0.01, 3)  # all alike
        assert_as_new(kept, atoms)


def test_atoms_that_drifted_a_million_cells_apart():
    # Their shifts no longer fit into one number a row to sort by.
    atoms = box_of_atoms()
    points, box, pbc = geometry(atoms)
    near = neighbour_list(points, CUTOFF, box, pbc)
    images = np.random.default_rng(0).integers(-3_000_000, 3_000_000, points.shape)
    far = neighbour_list(points + images @ box, CUTOFF, box, pbc)
    assert np.array_equal(far.edge_index, near.edge_index)
    assert np.array_equal(far.reverse, near.reverse)
    source, target = near.edge_index
    assert np.array_equal(far.shifts, near.shifts + images[source] - images[target])


def test_shorter_cutoffs_from_the_same_candidates(searches):
    atoms = box_of_atoms()
    kept = VerletList(CUTOFF, skin=0.5)
    for cutoff in (CUTOFF, 2.0, 1.0):
        assert_as_new(kept, atoms, cutoff)
    assert len(searches) == 1
    with pytest.raises(ValueError, match=r"cutoff of 4 Å exceeds that of the Verlet list, 3 Å"):
        assert_as_new(kept, atoms, 4.0)


def test_exploded_and_flat_structures_are_refused_as_by_a_new_search():
    atoms = box_of_atoms()
    kept = VerletList(CUTOFF, skin=0.5)
    assert_as_new(kept, atoms)
    points, box, pbc = geometry(atoms)
    flat = box.copy()
    flat[2] = flat[1]
    with pytest.raises(ValueError, match="flat"):
        kept(points, CUTOFF, flat, pbc)
    far = points.copy()
    far[0, 0] += 1e5
    with pytest.raises(ValueError, match="spread over"):
        kept(far, CUTOFF, box, np.zeros(3, dtype=bool))
    assert_as_new(kept, atoms)


def test_unusable_skins():
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"skin is {value}"):
            LKMCalculator(small_model(), skin=value)


@pytest.mark.parametrize("name", ["molecule", "crystal"])
def test_dynamics_with_and_without_skin_are_bitwise_the_same(name, searches):
    ends = []
    for width in (0.0, 0.3, 1.0):
        model = small_model("pamnet", cutoff=CUTOFF, local_cutoff=2.0)
        model.scale.fill_(0.02)  # forces of a few eV/Å
        atoms = STRUCTURES[name]()
        atoms.calc = LKMCalculator(model, skin=width)
        atoms.set_momenta(np.random.default_rng(0).normal(0, 0.3, (len(atoms), 3)))
        dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
        dynamics.attach(lambda atoms=atoms: atoms.wrap(), 3)
        dynamics.run(20)
        ends.append(atoms)
    assert len(searches) < 15
    for other in ends[1:]:
        assert np.array_equal(other.positions, ends[0].positions)
        assert np.array_equal(other.get_forces(), ends[0].get_forces())
        assert np.array_equal(other.get_potential_energies(), ends[0].get_potential_energies())


def test_one_calculator_for_many_kinds_of_atoms():
    kept, fresh = (LKMCalculator(small_model(), skin=width) for width in (0.5, 0.0))
    turned = crystal()
    turned.numbers = turned.numbers[::-1]
    for atoms in (
        rattled(),
        rattled("H2O"),
        crystal(),
        turned,
        rattled(seed=1),
        crystal(pbc=False),
    ):
        assert np.array_equal(kept.get_forces(atoms), fresh.get_forces(atoms))
