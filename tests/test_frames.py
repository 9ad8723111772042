import numpy as np
import pytest

from train.frames import DataError, Frames, random_split
from train.loop import reference_energies


def mixed():
    """Water, methane and water again, flat."""
    numbers = np.array([8, 1, 1, 6, 1, 1, 1, 1, 8, 1, 1])
    starts = np.array([0, 3, 8, 11])
    xyz = np.arange(33.0).reshape(11, 3)
    return Frames(numbers, xyz, -xyz, np.array([-10.0, -20.0, -30.0]), starts)


def test_select_keeps_each_frames_atoms():
    chosen = mixed().select(np.array([2, 1]))
    assert chosen.numbers.tolist() == [8, 1, 1, 6, 1, 1, 1, 1]
    assert chosen.sizes.tolist() == [3, 5]
    assert chosen.energies.tolist() == [-30, -20]
    np.testing.assert_array_equal(chosen.positions[:3], mixed().positions[8:])
    assert len(mixed().select(np.array([], dtype=np.int64))) == 0


def test_split_is_disjoint_and_a_function_of_the_seed():
    split = random_split(100, 60, 20, seed=3)
    assert len(np.union1d(split.train, split.validation)) == 80
    again = random_split(100, 60, 20, seed=3)
    np.testing.assert_array_equal(split.train, again.train)
    assert not np.array_equal(split.train, random_split(100, 60, 20, seed=4).train)


@pytest.mark.parametrize(("train", "validation"), [(90, 20), (0, 5), (5, 0)])
def test_impossible_splits(train, validation):
    with pytest.raises(DataError, match=rf"n_train = {train} .* do not fit the 100 frames"):
        random_split(100, train, validation, seed=0)


def test_reference_energies_of_several_compositions_are_exact():
    counts = np.array([[2, 0, 1], [4, 1, 0], [2, 2, 1], [3, 1, 2]])
    expected = np.array([-13.6, -1030.25, -2041.5])
    numbers = np.concatenate([np.repeat([1, 6, 8], row) for row in counts])
    starts = np.concatenate([[0], counts.sum(1).cumsum()])
    xyz = np.zeros((len(numbers), 3))
    elements, energies = reference_energies(Frames(numbers, xyz, xyz, counts @ expected, starts))
    assert elements == [1, 6, 8]
    np.testing.assert_allclose(energies, expected, rtol=1e-12)


def test_reference_energies_of_one_composition_give_its_mean():
    numbers = np.tile([8, 1, 1], 3)
    xyz = np.zeros((9, 3))
    frames = Frames(numbers, xyz, xyz, np.array([-2081.0, -2082.0, -2084.5]), np.arange(4) * 3)
    elements, energies = reference_energies(frames)
    assert elements == [1, 8]
    assert 2 * energies[0] + energies[1] == pytest.approx(-2082.5, abs=1e-9)
