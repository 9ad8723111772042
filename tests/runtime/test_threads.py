import pytest
import torch

from lkm_calc import LKMCalculator
from lkm_calc.runtime.threads import ROWS_PER_THREAD, threads_for

from ..support import rattled, small_model


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(("share", "expected"), [(0, 1), (1, 1), (2.5, 2), (4, 4), (100, 4)])
def test_threads_by_rows(share, expected):
    with threads_for(int(share * ROWS_PER_THREAD)):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_the_number_is_restored_after_an_error():
    with pytest.raises(RuntimeError, match="stop"), threads_for(1):
        raise RuntimeError("stop")
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_a_small_structure_takes_one_thread():
    calc = LKMCalculator(small_model(), "cpu")
    seen, forward = [], calc.model.forward
    calc.model.forward = lambda graph: seen.append(torch.get_num_threads()) or forward(graph)
    calc.get_potential_energy(rattled())
    assert seen == [1]
    assert torch.get_num_threads() == 4
