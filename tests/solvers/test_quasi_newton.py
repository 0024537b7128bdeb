"""Quasi-Newton methods: their epochs go on where the model is, and bounds are kept or refused."""

from __future__ import annotations

import re

import pytest
import torch
from solver_suite import make_model, make_solver, other_values, train

from mfrec.errors import OptionError
from mfrec.model.objective import Objective
from mfrec.solvers.quasi_newton import METHODS
from mfrec.solvers.registry import SOLVERS


@pytest.mark.parametrize("method", METHODS)
def test_each_method_reaches_a_stationary_point(method, weighted_ratings, odd_features):
    objective, model = Objective(0.7, 0.2, "sqrt"), make_model(weighted_ratings, **odd_features.options())
    train(make_solver("quasi-newton", model, weighted_ratings, objective, method=method, iterations=400), 6)
    for name, gradient in objective.gradients(model, weighted_ratings).items():
        assert float(gradient.abs().max()) < 1e-4, name


@pytest.mark.parametrize("method", METHODS)
def test_no_epoch_raises_the_cost_and_each_has_its_number_of_iterations(method, odd_ratings):
    objective, model = Objective(0.5), make_model(odd_ratings)
    solver, costs = make_solver("quasi-newton", model, odd_ratings, objective, method=method, iterations=3), []
    for _ in range(8):
        costs.append(float(objective.cost(model, odd_ratings)))
        evaluations = solver.epoch()["evaluations"]
        # A line search evaluates the cost a few times per iteration; tnc counts evaluations.
        assert 1 <= evaluations <= (3 if method == "tnc" else 30)
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.9 * costs[0]


def test_a_model_in_single_precision_is_trained_in_double_precision(odd_ratings):
    models = [make_model(odd_ratings.to(dtype=dtype)) for dtype in (torch.float32, torch.float64)]
    models[1].load_state_dict({name: value.double() for name, value in models[0].state_dict().items()})
    for model, dtype in zip(models, (torch.float32, torch.float64), strict=True):
        train(make_solver("quasi-newton", model, odd_ratings.to(dtype=dtype), Objective(0.5), iterations=5), 1)
        assert model.dtype == dtype
    torch.testing.assert_close(models[0].user_factors.weight, models[1].user_factors.weight.float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_non_negative_factors_need_a_method_with_bounds(method, odd_ratings):
    model = make_model(odd_ratings, nonnegative=True)
    if method == "cg":
        message = "method cg does not support bounds, which non-negative factors need; use l-bfgs-b or tnc"
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            make_solver("quasi-newton", model, odd_ratings, Objective(), method=method)
    else:
        make_solver("quasi-newton", model, odd_ratings, Objective(), method=method)


def test_the_declared_methods_are_the_implemented_ones():
    kind = SOLVERS["quasi-newton"].options
    assert {kind().method, *other_values(kind)["method"]} == set(METHODS)
