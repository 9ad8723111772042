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


def test_one_layer_has_nothing_to_mix():
    assert lkm_loss([torch.randn(3, 4)]).item() == 0


@pytest.mark.parametrize("embeddings", [[], [torch.zeros(2, 3), torch.zeros(2, 4)]])
def test_layers_must_fit(embeddings):
    with pytest.raises(ValueError, match="one shape"):
        lkm_loss(embeddings)
