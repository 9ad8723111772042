import numpy as np
import pytest

from train.data.frames import Frames
from train.data.reference import fit_reference_energies


def test_reference_energies_of_several_compositions_are_exact():
    counts = np.array([[2, 0, 1], [4, 1, 0], [2, 2, 1], [3, 1, 2]])
    expected = np.array([-13.6, -1030.25, -2041.5])
    numbers = np.concatenate([np.repeat([1, 6, 8], row) for row in counts])
    starts = np.concatenate([[0], counts.sum(1).cumsum()])
    xyz = np.zeros((len(numbers), 3))
    frames = Frames(numbers=numbers, positions=xyz, energies=counts @ expected, starts=starts)
    elements, energies, rank, residuals = fit_reference_energies(frames)
    assert elements == [1, 6, 8]
    np.testing.assert_allclose(energies, expected, rtol=1e-12)
    assert rank == 3
    assert np.abs(residuals).max() < 1e-9


def test_reference_energies_of_one_composition_give_its_mean():
    numbers = np.tile([8, 1, 1], 3)
    xyz = np.zeros((9, 3))
    labels = np.array([-2081.0, -2082.0, -2084.5])
    frames = Frames(numbers=numbers, positions=xyz, energies=labels, starts=np.arange(4) * 3)
    elements, energies, rank, residuals = fit_reference_energies(frames)
    assert elements == [1, 8]
    assert 2 * energies[0] + energies[1] == pytest.approx(-2082.5, abs=1e-9)
    assert rank == 1
    np.testing.assert_allclose(residuals, [1.5, 0.5, -2.0], atol=1e-9)
