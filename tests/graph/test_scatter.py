import torch

from lkm_calc.graph.scatter import ragged, sum_to


def test_sum_to_adds_rows_of_equal_index():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    found = sum_to(rows, torch.tensor([2, 0, 2]), 4)
    assert found.tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]


def test_ragged_lists_the_rows_of_each_segment_empty_ones_too():
    rows, segment = ragged(torch.tensor([7, 0, 3, 3]), torch.tensor([2, 3, 0, 1]))
    assert rows.tolist() == [7, 8, 0, 1, 2, 3]
    assert segment.tolist() == [0, 0, 1, 1, 1, 3]
