import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lkm_calc import MODELS, energy_and_forces
from lkm_calc.runtime import precision
from lkm_calc.runtime.precision import deterministic, fast_matmul

from ..support import crystal, graph_of, small_model

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
    monkeypatch.setattr(precision, "onednn_is_exact", lambda: False)
    with fast_matmul():
        assert SETTING.fp32_precision == before


def test_small_products_keep_their_route():
    before = SETTING.fp32_precision
    with fast_matmul(rows=precision.MIN_ROWS - 1):
        assert SETTING.fp32_precision == before


def deterministic_state():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.mark.parametrize("before", [(False, False), (True, True)])
def test_deterministic_algorithms_are_taken_for_a_while(before):
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    try:
        state = deterministic_state()
        with deterministic(enabled=False):
            assert deterministic_state() == state
        with pytest.raises(RuntimeError, match="stop"), deterministic():
            assert deterministic_state() == (True, False, False)
            raise RuntimeError("stop")
        assert deterministic_state() == state
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_bits_at_every_call_and_nothing_refused(name):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = small_model(name).float()
        graph = graph_of(crystal(), model)
        expected = energy_and_forces(model, graph, stress=True)
        for _ in range(5):
            with deterministic():
                found = energy_and_forces(model, graph, stress=True)
            for a, b in zip(found[:4], expected[:4], strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


def test_threads_do_not_leave_each_others_settings():
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    before = torch.backends.mkldnn.matmul.fp32_precision

    def first():
        with precision.deterministic(), fast_matmul():
            first_in.set()
            second_in.wait(10)
        first_out.set()

    def second():
        first_in.wait(10)
        with precision.deterministic(), fast_matmul():
            second_in.set()
            first_out.wait(10)
            assert torch.are_deterministic_algorithms_enabled(), "still inside"

    with ThreadPoolExecutor(2) as pool:
        for task in [pool.submit(first), pool.submit(second)]:
            task.result()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.mkldnn.matmul.fp32_precision == before
