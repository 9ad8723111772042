import pytest
import torch

from lkm_calc import precision
from lkm_calc.precision import fast_matmul

SETTING = torch.backends.mkldnn.matmul


def product_error():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(200, 200, generator=generator) for _ in range(2))
    return (a @ b - a.double() @ b.double()).abs().max().item()


def test_no_accuracy_is_lost():
    ordinary = product_error()
    with fast_matmul():
        assert product_error() <= 3 * ordinary


def test_the_setting_is_restored_even_after_an_error():
    before = SETTING.fp32_precision
    with pytest.raises(RuntimeError, match="stop"), fast_matmul():
        raise RuntimeError("stop")
    assert SETTING.fp32_precision == before


def test_not_taken_where_it_would_lose_accuracy(monkeypatch):
    before = SETTING.fp32_precision
    monkeypatch.setattr(precision, "_onednn_is_exact", lambda: False)
    with fast_matmul():
        assert SETTING.fp32_precision == before


def test_small_products_keep_their_route():
    before = SETTING.fp32_precision
    with fast_matmul(rows=precision.MIN_ROWS - 1):
        assert SETTING.fp32_precision == before
