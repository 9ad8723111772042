import numpy as np
import pytest
from ase.build import molecule

from studies.environments import environments
from studies.similarity import balanced_accuracy, effective_rank, fit_probe, linear_cka


def normal(rows, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dim))


def directions(k, dim=8, rows=64):
    """k orthogonal directions of equal size, turned at random, about a mean of ones."""
    centred = normal(rows, k) - normal(rows, k).mean(0)
    equal = np.linalg.qr(centred)[0]
    rotation = np.linalg.qr(normal(dim, dim, 1))[0]
    return 1 + 5 * equal @ rotation[:k]


@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_effective_rank_of_k_equal_directions_is_k(k):
    assert effective_rank(directions(k)) == pytest.approx(k, abs=1e-6)


def test_the_effective_rank_of_two_unequal_directions_is_that_of_their_entropy():
    x = np.zeros((4, 3))
    x[:2, 0], x[2:, 1] = [3, -3], [1, -1]  # singular values 3√2 and √2
    expected = np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    assert effective_rank(x) == pytest.approx(expected, abs=1e-12)


def test_rows_that_are_all_the_same_have_no_rank_and_no_likeness():
    same = np.full((10, 4), 0.1)
    assert effective_rank(same) == 0
    with pytest.raises(ValueError, match="all the same"):
        linear_cka(np.zeros((10, 4)), normal(10, 4))


def test_cka_of_turned_shifted_and_scaled_embeddings_is_one():
    x = normal(50, 6)
    y = 3 * x @ np.linalg.qr(normal(6, 6, 1))[0] - 2
    assert linear_cka(x, y) == pytest.approx(1, abs=1e-12)


def test_cka_of_independent_embeddings_is_small_and_of_orthogonal_ones_zero():
    assert linear_cka(normal(5000, 6), normal(5000, 6, 1)) < 0.01
    both = directions(8)
    rotated = (both - both.mean(0)) @ np.linalg.svd(both - both.mean(0))[2].T
    assert linear_cka(rotated[:, :4], rotated[:, 4:]) == pytest.approx(0, abs=1e-12)


def test_cka_weighs_a_shared_direction_by_its_variance():
    a, b, c = np.linalg.qr(normal(50, 3) - normal(50, 3).mean(0))[0].T
    x, y = np.column_stack([a, b]), np.column_stack([a, c])
    assert linear_cka(x, y) == pytest.approx(0.5, abs=1e-12)


def test_a_probe_finds_a_linear_rule():
    x, unseen = normal(600, 8), normal(600, 8, 1)
    rule = normal(8, 3, 2)
    probe = fit_probe(x, np.argmax(x @ rule, 1))
    assert balanced_accuracy(probe.predict(unseen), np.argmax(unseen @ rule, 1)) > 0.95


def test_a_probe_is_blind_to_scale_and_constant_columns():
    x = normal(200, 4)
    classes = (x[:, 0] > 0).astype(np.int64)
    stretched = np.column_stack([1e-3 * x + 7, np.ones(200)])
    expected = fit_probe(x, classes).predict(x)
    np.testing.assert_array_equal(fit_probe(stretched, classes).predict(stretched), expected)


def test_a_probe_fails_on_noise_and_on_a_rule_that_is_not_linear():
    x, unseen = normal(2000, 4), normal(2000, 4, 1)
    noise = np.random.default_rng(3).integers(0, 2, 2000)
    assert balanced_accuracy(fit_probe(x, noise).predict(unseen), noise) == pytest.approx(
        0.5, abs=0.05
    )
    parity = [(sample[:, 0] * sample[:, 1] > 0).astype(np.int64) for sample in (x, unseen)]
    found = fit_probe(x, parity[0]).predict(unseen)
    assert balanced_accuracy(found, parity[1]) == pytest.approx(0.5, abs=0.06)


def test_a_rare_class_counts_as_much_as_a_common_one():
    classes = np.array([0] * 90 + [1] * 10)
    assert balanced_accuracy(np.zeros(100, np.int64), classes) == 0.5
    x = np.concatenate([normal(900, 1), normal(100, 1, 1) + 1.0])
    classes = np.array([0] * 900 + [1] * 100)
    found = fit_probe(x, classes).predict(x)
    recalls = [np.mean(found[classes == k] == k) for k in (0, 1)]
    assert min(recalls) > 0.6  # an unweighted fit names nearly all of them 0


def test_a_probe_needs_every_class():
    with pytest.raises(ValueError, match=r"\[0, 10\] times"):
        fit_probe(normal(10, 2), np.ones(10, np.int64))


def test_environments_of_ethanol():
    atoms = molecule("CH3CH2OH")
    found = environments(atoms)
    carbons = {k: values[atoms.numbers == 6].tolist() for k, values in found.items()}
    assert carbons["neighbours"] == [4, 4]
    assert carbons["ring"] == [0, 0]
    assert sorted(carbons["second"]) == [0, 1]  # the methyl group; the other is bonded to O
    assert carbons["third"] == [0, 0]
    assert found["third"].sum() == 3  # the methyl group's hydrogens
    assert found["neighbours"][atoms.numbers == 8].tolist() == [2]


def test_environments_of_rings():
    benzene = molecule("C6H6")
    carbon = benzene.numbers == 6
    found = environments(benzene)
    assert set(found["neighbours"][carbon]) == {3}
    np.testing.assert_array_equal(found["ring"], carbon.astype(int))
    assert not found["second"].any()
    furan = molecule("C4H4O")
    found, carbon = environments(furan), furan.numbers == 6
    assert found["ring"].sum() == 5
    assert found["second"][carbon].sum() == 2
    assert not found["third"][carbon].any()
