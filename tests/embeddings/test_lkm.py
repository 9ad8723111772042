import pytest
import torch

from lkm_calc import lkm_loss


def layers():
    # Two atoms, two channels, three layers; means over layers (2, 2) and (0, 3).
    return [
        torch.tensor([[1.0, 2.0], [0.0, 3.0]]),
        torch.tensor([[2.0, 2.0], [-1.0, 3.0]]),
        torch.tensor([[3.0, 2.0], [1.0, 3.0]]),
    ]


def test_hand_computed_values():
    # Differences: channel 0 of both atoms −1, 0, 1 in some order; channel 1 zero.
    assert lkm_loss(layers()).item() == pytest.approx(4 / 12)
    assert lkm_loss(layers(), "mae").item() == pytest.approx(4 / 12)
    uneven = [torch.tensor([[0.0]]), torch.tensor([[0.0]]), torch.tensor([[3.0]])]
    assert lkm_loss(uneven).item() == pytest.approx((1 + 1 + 4) / 3)
    assert lkm_loss(uneven, "mae").item() == pytest.approx((1 + 1 + 2) / 3)


def test_equals_the_mean_over_pairs_of_layers():
    e = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs = (e.unsqueeze(0) - e.unsqueeze(1)).square().sum() / (2 * 4)
    assert lkm_loss(list(e)).item() == pytest.approx(pairs.item() / e.numel())


def test_gradient_of_one_layer():
    e = [layer.requires_grad_() for layer in layers()]
    lkm_loss(e).backward()
    # d/de_ij of mean (e − ē)² = 2 (e_ij − ē_i) / 12; the mean's own share cancels.
    assert torch.allclose(e[0].grad, 2 / 12 * torch.tensor([[-1.0, 0], [0, 0]]))
    assert torch.allclose(e[1].grad, 2 / 12 * torch.tensor([[0.0, 0], [-1, 0]]))


def drawn(layers=5, atoms=4, channels=3):
    """Return embeddings that require gradients, float64."""
    generator = torch.Generator().manual_seed(1)
    shape = layers, atoms, channels
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def weights(*shape):
    """Return weights that add up to 1 over the second dimension."""
    drawn = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return drawn / drawn.sum(1, keepdim=True)


TEACHERS = ["deeper", "neighbours", weights(1, 5), weights(5, 5), weights(1, 5, 4)]
NAMES = ["deeper", "neighbours", "one for all", "one each", "one each atom"]


def taught_by(teacher, j, layers):
    """Return the layers of which layer j learns, with their weights, (atoms) or numbers."""
    if isinstance(teacher, torch.Tensor):
        row = teacher[j if len(teacher) > 1 else 0]
        return [(k, row[k]) for k in range(layers)]
    near = range(j + 1, layers) if teacher == "deeper" else (j - 1, j + 1)
    near = [k for k in near if 0 <= k < layers]
    return [(k, torch.tensor(1.0 / len(near), dtype=torch.float64)) for k in near]


def by_a_loop(e, distance, scale_free, teacher):
    """Return the loss as it is written, one atom at a time."""
    layers, atoms, _ = e.shape
    power = {"mse": 2, "mae": 1}[distance]
    terms = []
    for j in range(layers):
        pairs = taught_by(teacher, j, layers)
        for i in range(atoms) if pairs else ():
            target = sum(w.expand(atoms)[i] * e[k, i].detach() for k, w in pairs)
            target = target * (e[j, i].detach().norm() / target.norm())
            size = (e[:, i].abs() ** power).mean() if scale_free else 1
            terms.append(((e[j, i] - target).abs() ** power).mean() / size)
    return sum(terms) / len(terms)


@pytest.mark.parametrize("distance", ["mse", "mae"])
@pytest.mark.parametrize("scale_free", [False, True])
@pytest.mark.parametrize("teacher", TEACHERS, ids=NAMES)
def test_teachers_are_their_formulas(distance, scale_free, teacher):
    e = drawn()
    found = lkm_loss(list(e), distance, scale_free, teacher)
    expected = by_a_loop(e, distance, scale_free, teacher)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = (torch.autograd.grad(loss, e)[0] for loss in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def test_the_mean_is_what_it_was_without_teachers():
    e = drawn().detach().float().requires_grad_()
    found, expected = lkm_loss(list(e)), (e - e.mean(0)).square().mean((0, 2)).mean()
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(loss, e)[0] for loss in (found, expected)]
    assert torch.equal(*gradients)


def test_knowledge_of_deeper_layers_flows_down_only():
    e = drawn(3)
    lkm_loss(list(e), teacher="deeper").backward()
    assert e.grad[0].any()
    assert e.grad[1].any()
    assert not e.grad[2].any()


@pytest.mark.parametrize("teacher", TEACHERS, ids=NAMES)
def test_nothing_grows_after_its_teacher(teacher):
    """The gradient never asks for a longer embedding, were the teacher a thousand times longer."""
    e = (drawn() * torch.tensor([1.0, 10, 100, 1000, 1e4]).view(5, 1, 1)).detach()
    e.requires_grad_()
    lkm_loss(list(e), teacher=teacher).backward()
    assert ((e * e.grad).sum(2) >= -1e-12 * e.square().sum(2)).all()


def test_layers_of_one_direction_have_learnt_all():
    e = torch.tensor([1.0, 3.0, 0.5]).view(3, 1, 1) * torch.randn(1, 2, 4)
    assert lkm_loss(list(e), teacher="deeper").item() < 1e-12


def test_an_embedding_of_zeros_has_a_gradient():
    e = drawn().detach()
    e[3:, 0] = 0
    e.requires_grad_()
    lkm_loss(list(e), scale_free=True, teacher="deeper").backward()
    assert e.grad.isfinite().all()


def test_weights_learn_by_direction():
    near = torch.tensor([[[1.0, 0.0]], [[0.1, 0.01]], [[0.0, 50.0]]])
    logits = torch.zeros(3, 3, requires_grad=True)
    itself = torch.eye(3, dtype=torch.bool)
    weights = torch.softmax(logits.masked_fill(itself, -torch.inf), 1)
    lkm_loss(list(near), teacher=weights).backward()
    assert logits.grad[0, 1] < 0 < logits.grad[0, 2], "the short layer that points the same way"


@pytest.mark.parametrize("scale_free", [False, True])
@pytest.mark.parametrize("teacher", ["mean", "deeper", "neighbours", torch.ones(1, 1)])
def test_one_layer_has_nothing_to_mix(scale_free, teacher):
    e = torch.randn(3, 4, requires_grad=True)
    loss = lkm_loss([e], "mae", scale_free, teacher)
    loss.backward()
    assert loss.item() == 0
    assert not e.grad.any()


@pytest.mark.parametrize("shape", [(3,), (2, 3), (3, 2), (3, 3, 3), (1, 3, 2, 1), ()])
def test_weights_must_fit_layers_and_atoms(shape):
    with pytest.raises(ValueError, match=r"must be \(3 or 1, 3\), with 2 as a third dimension"):
        lkm_loss(layers(), teacher=torch.ones(shape))


def test_an_unknown_teacher():
    with pytest.raises(ValueError, match="teacher is 'oldest'; choose 'mean', 'deeper' or"):
        lkm_loss.__wrapped__(layers(), teacher="oldest")


@pytest.mark.parametrize("embeddings", [[], [torch.zeros(2, 3), torch.zeros(2, 4)]])
def test_layers_must_fit(embeddings):
    with pytest.raises(ValueError, match="one shape"):
        lkm_loss(embeddings)
