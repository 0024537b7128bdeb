"""Losses: each row of the table gives a loss and its derivative."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from mfrec.model.losses import LOSSES

ERRORS = torch.tensor([-1e4, -20.0, -1.5, -0.01, 0.0, 0.01, 0.7, 20.0, 1e4], dtype=torch.float64)


@pytest.mark.parametrize("name", LOSSES)
def test_the_derivative_is_that_of_the_loss(name):
    targets = torch.linspace(-2, 5, len(ERRORS), dtype=torch.float64)
    predictions = (ERRORS + targets).requires_grad_()
    losses, derivatives = LOSSES[name](predictions, targets)
    (expected,) = torch.autograd.grad(losses.sum(), predictions)
    assert_close(derivatives.detach(), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_no_error_costs_nothing_and_a_larger_one_costs_more(name):
    zeros = torch.zeros_like(ERRORS)
    losses, derivatives = LOSSES[name](ERRORS, zeros)
    assert losses.shape == derivatives.shape == ERRORS.shape
    assert float(losses[4]) == pytest.approx(0.0, abs=1e-15)
    assert bool((losses[4:].diff() > 0).all())
    assert bool((losses[:5].diff() < 0).all())
    assert torch.equal(derivatives.sign(), ERRORS.sign())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_keeps_the_type_of_the_predictions_and_does_not_overflow(name, dtype):
    losses, derivatives = LOSSES[name](ERRORS.to(dtype), torch.zeros(len(ERRORS), dtype=dtype))
    assert losses.dtype == derivatives.dtype == dtype
    assert bool(torch.isfinite(losses).all())


def test_log_cosh_is_the_squared_error_of_small_errors_and_the_absolute_value_of_large_ones():
    losses, slopes = LOSSES["log-cosh"](ERRORS, torch.zeros_like(ERRORS))
    small, large = ERRORS.abs() < 0.1, ERRORS.abs() > 10
    assert_close(losses[small], 0.5 * ERRORS[small] ** 2, rtol=1e-4, atol=1e-12)
    assert_close(losses[large], ERRORS[large].abs() - math.log(2))
    assert slopes.abs().max() <= 1
