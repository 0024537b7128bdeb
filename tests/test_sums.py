"""Sums over many numbers have the same bits on any number of threads."""

import pytest
import torch

from mfrec.sums import BLOCK, COPIED, column_totals, ordered_mean, ordered_sum


@pytest.mark.parametrize("n", [0, 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 5 * BLOCK + 3, COPIED + BLOCK, 3 * COPIED + 1])
def test_a_sum_is_that_of_torch_to_rounding_and_the_same_on_any_number_of_threads(n, threads):
    values = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    total = ordered_sum(values)
    torch.set_num_threads(1)
    assert torch.equal(total, ordered_sum(values))
    torch.testing.assert_close(total, values.sum())


def test_a_sum_in_another_type_has_the_same_bits_on_any_number_of_threads(threads):
    values = torch.randn(COPIED + 3 * BLOCK + 5, generator=torch.Generator().manual_seed(0))
    total = ordered_sum(values, torch.float64)
    torch.set_num_threads(1)
    assert torch.equal(total, ordered_sum(values, torch.float64))


@pytest.mark.parametrize("k", [1, 2, 33])
def test_sums_of_columns_are_those_of_torch_to_rounding_and_the_same_on_any_number_of_threads(k, threads):
    table = torch.randn(5 * BLOCK + 3, k, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    totals = column_totals(table)
    torch.set_num_threads(1)
    assert torch.equal(totals, column_totals(table))
    torch.testing.assert_close(totals, table.sum(0))


def test_a_sum_of_float32_can_be_added_up_in_float64():
    values = torch.cat([torch.full((1,), 2.0**24), torch.ones(3 * BLOCK)])
    assert float(ordered_sum(values, torch.float64)) == 2**24 + 3 * BLOCK


def test_a_sum_over_a_table_is_differentiable():
    table = torch.randn(700, 50, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ordered_sum(table.square()).backward()
    assert torch.equal(table.grad, 2 * table.detach())


def test_a_mean_of_nothing_is_nan():
    assert ordered_mean(torch.empty(0)).isnan()
    assert float(ordered_mean(torch.tensor([1.0, 4.0]))) == 2.5
