"""Gradient descent: the text's update, and torch's optimizers as it."""

from __future__ import annotations

import pytest
import torch
from solver_suite import assert_near, make_model, make_solver, train
from torch.testing import assert_close

from mfrec.errors import InputError
from mfrec.model.objective import Objective
from mfrec.solvers.torch_optimizer import EXCLUDED


@torch.no_grad()
def test_gradient_descent_is_the_texts_update_from_the_same_factors(odd_ratings):
    objective, model = Objective(1.5), make_model(odd_ratings, biases=False, offset="none")
    X, Theta = model.item_factors.weight.clone(), model.user_factors.weight.clone()
    R = torch.zeros(13, 11, dtype=torch.float64)
    R[odd_ratings.items.long(), odd_ratings.users.long()] = 1
    Y = torch.zeros_like(R)
    Y[odd_ratings.items.long(), odd_ratings.users.long()] = odd_ratings.values
    solver = make_solver("gd", model, odd_ratings, objective, lr=0.03)
    for _ in range(4):
        E = (X @ Theta.T - Y) * R
        X, Theta = X - 0.03 * (E @ Theta + 1.5 * X), Theta - 0.03 * (E.T @ X + 1.5 * Theta)
        assert solver.epoch() == {"lr": 0.03}
    assert_close(model.item_factors.weight, X)
    assert_close(model.user_factors.weight, Theta)


def test_plain_sgd_of_torch_is_gradient_descent(weighted_ratings, odd_features):
    models = [make_model(weighted_ratings, **odd_features.options()) for _ in range(2)]
    objective = Objective(0.7, 0.2, "sqrt")
    train(make_solver("gd", models[0], weighted_ratings, objective, lr=0.01), 5)
    train(make_solver("optim", models[1], weighted_ratings, objective, optimizer="sgd", lr=0.01), 5)
    assert_near(*models, atol=1e-12)


def test_adam_takes_the_steps_of_autograd_through_plain_embeddings(odd_ratings):
    model, plain = make_model(odd_ratings), make_model(odd_ratings)
    solver = make_solver("optim", model, odd_ratings, Objective(0.7), optimizer="Adam", lr=0.05)
    adam = torch.optim.Adam(plain.parameters(), lr=0.05)
    for _ in range(5):
        solver.epoch()
        adam.zero_grad()
        errors = plain(odd_ratings.users, odd_ratings.items) - odd_ratings.values
        (0.5 * errors.square().sum() + 0.35 * sum(p.square().sum() for p in plain.parameters())).backward()
        adam.step()
    assert_near(model, plain, atol=1e-12)


OPTIMIZERS = sorted(
    name.lower()
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and name.lower() not in EXCLUDED
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_of_torch_lowers_the_cost(optimizer, weighted_ratings):
    objective, model = Objective(0.5), make_model(weighted_ratings)
    before = float(objective.cost(model, weighted_ratings))
    solver = make_solver("optim", model, weighted_ratings, objective, optimizer=optimizer, lr=0.05)
    train(solver, 20)
    assert float(objective.cost(model, weighted_ratings)) < before


@pytest.mark.parametrize(
    ("optimizer", "suggestion"), [("adamm", "did you mean 'adam"), ("sparseadam", "did you mean"), ("Optimizer", "")]
)
def test_an_optimizer_that_torch_lacks_is_refused_with_the_nearest_name(optimizer, suggestion, odd_ratings):
    with pytest.raises(InputError, match=f"^unknown optimizer '{optimizer}'; {suggestion}"):
        make_solver("optim", make_model(odd_ratings), odd_ratings, Objective(), optimizer=optimizer)
