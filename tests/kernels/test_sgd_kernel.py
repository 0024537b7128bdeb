"""The kernel of SGD: a plain step follows the gradient, a proximal step minimizes, and both are their definitions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mfrec.kernels.sgd import LOG_COSH, SQUARED, Entries, Rows, Step, step_block
from mfrec.model.losses import LOSSES

CODES = {"squared": SQUARED, "log-cosh": LOG_COSH}
N_USERS, N_ITEMS, N_RATINGS = 5, 4, 12


def problem(rank: int, biases: bool, weighted: bool, dtype: Any = np.float64) -> tuple[Entries, Rows, Rows]:
    """Random ratings and parameters."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return generator.standard_normal(shape).astype(dtype)

    users, items = (generator.integers(0, n, N_RATINGS).astype(np.int32) for n in (N_USERS, N_ITEMS))
    weights = generator.uniform(0.2, 3, N_RATINGS if weighted else 0).astype(dtype)
    rows = [
        Rows(normal(n, rank), normal(n if biases else 0), generator.uniform(0, 2, (n, 2)).astype(dtype))
        for n in (N_USERS, N_ITEMS)
    ]
    return Entries(users, items, normal(N_RATINGS), weights), rows[0], rows[1]


def plain_steps(entries: Entries, users: Rows, items: Rows, lr: float, loss: str) -> list[Tensor]:
    """The parameters after a step down the gradient of each rating's share of J, by autograd."""
    parameters = [
        torch.from_numpy(array).clone().requires_grad_()
        for array in (users.factors, items.factors, users.bias, items.bias)
    ]
    theta, x, user_bias, item_bias = parameters
    user_l2, item_l2 = torch.from_numpy(users.l2), torch.from_numpy(items.l2)
    for n, (j, i) in enumerate(zip(entries.users.tolist(), entries.items.tolist(), strict=True)):
        prediction = (theta[j] * x[i]).sum()
        share = 0.5 * (user_l2[j, 0] * theta[j].square().sum() + item_l2[i, 0] * x[i].square().sum())
        if len(user_bias):
            prediction = prediction + user_bias[j] + item_bias[i]
            share = share + 0.5 * (user_l2[j, 1] * user_bias[j].square() + item_l2[i, 1] * item_bias[i].square())
        weight = entries.weights[n] if len(entries.weights) else 1.0
        share = share + weight * LOSSES[loss](prediction, torch.tensor(entries.targets[n]))[0]
        gradients = torch.autograd.grad(share, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter -= lr * gradient
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize(("biases", "weighted"), [*itertools.product([False, True], repeat=2)])
@pytest.mark.parametrize("loss", CODES)
def test_plain_steps_go_down_the_gradient_of_each_rating_in_turn(biases, weighted, loss):
    entries, users, items = problem(3, biases, weighted)
    expected = plain_steps(entries, users, items, 0.05, loss)
    step_block(entries, users, items, Step(0.05, False, CODES[loss], False), 0, N_RATINGS)
    for array, tensor in zip((users.factors, items.factors, users.bias, items.bias), expected, strict=True):
        assert_close(torch.from_numpy(array), tensor)


@pytest.mark.parametrize(("biases", "weighted"), [*itertools.product([False, True], repeat=2)])
def test_a_proximal_step_minimizes_the_linearized_cost(biases, weighted):
    entries, users, items = problem(3, biases, weighted)
    lr, (j, i) = 0.7, (entries.users[0], entries.items[0])
    free = (
        Rows(users.factors, users.bias, np.zeros_like(users.l2)),
        Rows(items.factors, items.bias, np.zeros_like(items.l2)),
    )
    theta, x = torch.from_numpy(users.factors[j].copy()), torch.from_numpy(items.factors[i].copy())
    old = [theta, x, *(torch.from_numpy(rows.bias[n : n + 1].copy()) for rows, n in ((users, j), (items, i)))]
    error = float(theta @ x) - entries.targets[0] + sum(float(b.sum()) for b in old[2:])
    step_block(entries, *free, Step(lr, True, SQUARED, False), 0, 1)
    new = [users.factors[j], items.factors[i], users.bias[j : j + 1], items.bias[i : i + 1]]
    changes = [(torch.tensor(b) - a).requires_grad_() for a, b in zip(old, new, strict=True)]
    linearized = error + x @ changes[0] + theta @ changes[1] + changes[2].sum() + changes[3].sum()
    weight = entries.weights[0] if weighted else 1.0
    cost = 0.5 * weight * linearized**2 + sum(change.square().sum() for change in changes) / (2 * lr)
    for gradient in torch.autograd.grad(cost, changes):
        assert_close(gradient, torch.zeros_like(gradient))


def test_the_penalty_of_a_proximal_step_divides_the_row():
    entries, users, items = problem(3, True, False)
    before, free = users.factors.copy(), users.factors.copy()
    j = entries.users[0]
    copies = [rows._replace(factors=rows.factors.copy(), bias=rows.bias.copy()) for rows in (users, items)]
    step_block(entries, users, items, Step(0.3, True, SQUARED, False), 0, 1)
    free_users, free_items = (rows._replace(l2=np.zeros_like(rows.l2)) for rows in copies)
    step_block(entries, free_users, free_items, Step(0.3, True, SQUARED, False), 0, 1)
    free = free_users.factors
    np.testing.assert_allclose(users.factors[j], free[j] / (1 + 0.3 * users.l2[j, 0]))
    assert not np.allclose(free[j], before[j])


@pytest.mark.parametrize("lr", [1.0, 1e3, 1e6])
def test_proximal_steps_of_any_size_reduce_the_linearized_error(lr):
    entries, users, items = problem(3, True, False)
    step_block(entries, users, items, Step(lr, True, SQUARED, False), 0, N_RATINGS)
    assert all(np.isfinite(rows.factors).all() for rows in (users, items))
    assert max(np.abs(rows.factors).max() for rows in (users, items)) < 10


def test_a_nonnegative_step_leaves_no_factor_below_zero():
    entries, users, items = problem(4, True, True)
    step_block(entries, users, items, Step(0.1, True, SQUARED, True), 0, N_RATINGS)
    for rows, touched in ((users, entries.users), (items, entries.items)):
        assert (rows.factors[touched] >= 0).all()
        assert (rows.factors[touched] == 0).any()
    assert (users.bias < 0).any()


@pytest.mark.parametrize("rank", [0, 1, 17])
def test_float32_agrees_with_float64(rank):
    results = []
    for dtype in (np.float32, np.float64):
        entries, users, items = problem(rank, True, True, dtype)
        step_block(entries, users, items, Step(0.05, True, LOG_COSH, False), 0, N_RATINGS)
        results.append((users, items))
    for rows, exact in zip(*results, strict=True):
        assert rows.factors.dtype == np.float32
        np.testing.assert_allclose(rows.factors, exact.factors, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rows.bias, exact.bias, rtol=1e-4, atol=1e-5)


def test_a_nan_target_reaches_the_parameters():
    entries, users, items = problem(3, True, False)
    entries.targets[0] = np.nan
    step_block(entries, users, items, Step(0.05, True, SQUARED, False), 0, 1)
    assert np.isnan(users.factors[entries.users[0]]).all()
