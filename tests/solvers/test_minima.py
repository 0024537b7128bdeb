"""Minima: solvers that converge end at the course exercise's minimum, and at bounded minima of non-negative models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from solver_suite import assert_near, make_model, make_solver, train

from mfrec.data.ratings import Ratings
from mfrec.evaluation.metrics import rmse
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import L2_SCALINGS, Objective
from mfrec.solvers.registry import SOLVERS


@pytest.fixture(scope="module")
def exercise(shared_data) -> Ratings:
    """The course exercise's ratings with its new user as the first column."""
    movies = scipy.io.loadmat(shared_data / "ex8/ex8_movies.mat")
    new = np.zeros((len(movies["Y"]), 1))
    stars = {1: 4, 98: 2, 7: 3, 12: 5, 54: 4, 64: 5, 66: 3, 69: 5, 183: 4, 226: 5, 355: 5}
    new[np.array(list(stars)) - 1, 0] = list(stars.values())
    return Ratings.from_dense(
        np.hstack([new, movies["Y"].astype(float)]), np.hstack([new > 0, movies["R"].astype(bool)])
    )


def exercise_model(ratings: Ratings) -> MatrixFactorization:
    """10 features, without biases, centred by each movie's plain mean."""
    return MatrixFactorization.from_ratings(ratings, 10, biases=False, offset="item", damping=0.0)


@torch.no_grad()
def test_predicting_the_mean_of_each_movie_costs_what_the_course_exercise_says(exercise):
    model = exercise_model(exercise)
    for parameter in model.parameters():
        parameter.zero_()
    assert float(Objective(10.0).cost(model, exercise)) == pytest.approx(50014.817, abs=1e-3)


@pytest.mark.parametrize(("name", "options", "epochs", "seed"), [
    ("optim", {"optimizer": "lbfgs", "lr": 1.0}, 20, 3),
    *(("quasi-newton", {"method": method, "iterations": 50}, 15, seed)
      for method in ("l-bfgs-b", "cg", "tnc") for seed in (10, 11, 12)),
    ("als", {"solve": "cg", "cg_steps": 2, "relaxation": 1.0}, 200, 8),
    ("als", {"solve": "cholesky", "relaxation": 1.0}, 200, 8),
])  # fmt: skip
def test_a_solver_that_converges_ends_at_the_minimum_of_the_course_exercise(exercise, name, options, epochs, seed):
    # From some other starts, such as seed 4, l-bfgs-b ends at a stationary point 12.6 higher: J is not convex.
    objective, model = Objective(10.0), exercise_model(exercise)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    solver, costs = make_solver(name, model, exercise, objective, **options), [float("inf")]
    for _ in range(epochs):
        solver.epoch()
        costs.append(float(objective.cost(model, exercise)))
        if costs[-2] - costs[-1] < 1e-4:
            break
    assert costs[-1] == pytest.approx(38951.848, abs=0.01)
    assert rmse(model.predict_observed(exercise), exercise.values) == pytest.approx(0.7798, abs=1e-4)


@pytest.mark.parametrize(("name", "options", "epochs"), [
    ("als", {"relaxation": 1.0}, 400),
    ("quasi-newton", {"iterations": 100}, 4),
    ("quasi-newton", {"method": "tnc", "iterations": 500}, 4),
])  # fmt: skip
def test_non_negative_factors_end_where_none_can_lower_the_cost(name, options, epochs, weighted_ratings):
    objective, model = Objective(0.7), make_model(weighted_ratings, nonnegative=True, init="uniform")
    train(make_solver(name, model, weighted_ratings, objective, **options), epochs)
    n_at_bound = 0
    for key, gradient in objective.gradients(model, weighted_ratings).items():
        at_bound = (model.get_parameter(key) < 1e-9) & key.endswith("factors.weight")
        assert float(gradient[~at_bound].abs().max()) < 1e-4, key
        assert bool((gradient[at_bound] > -1e-4).all()), key
        n_at_bound += int(at_bound.sum())
    assert n_at_bound > 5


@pytest.mark.parametrize(
    ("name", "options"), [("gd", {"lr": 0.004}), ("sgd", {"lr": 0.02}), ("block-sgd", {"lr": 0.02}), ("als", {})]
)
@pytest.mark.parametrize("l2_scaling", L2_SCALINGS)
def test_weights_of_two_with_twice_the_penalty_and_half_the_step_change_nothing(
    name, options: dict[str, Any], l2_scaling, odd_ratings, odd_features
):
    r, models = odd_ratings, []
    features = odd_features.options() if "features" in SOLVERS[name].supports else {}
    twice = Ratings(r.users, r.items, r.values, r.n_users, r.n_items, weights=torch.full((len(r),), 2.0))
    for ratings, scale in ((r, 1), (twice, 2)):
        model = make_model(ratings, **features)
        scaled = {option: value / scale for option, value in options.items()}
        train(make_solver(name, model, ratings, Objective(scale * 0.7, scale * 0.2, l2_scaling), **scaled), 5)
        models.append(model)
    assert_near(*models, atol=1e-10)
