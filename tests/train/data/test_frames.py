import numpy as np
import pytest

from train.data.frames import DataError, Frames, random_split


def mixed():
    """Water, methane and water again, flat."""
    numbers = np.array([8, 1, 1, 6, 1, 1, 1, 1, 8, 1, 1])
    starts = np.array([0, 3, 8, 11])
    xyz = np.arange(33.0).reshape(11, 3)
    energies = np.array([-10.0, -20.0, -30.0])
    return Frames(numbers=numbers, positions=xyz, forces=-xyz, energies=energies, starts=starts)


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
