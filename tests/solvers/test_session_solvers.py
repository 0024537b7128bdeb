"""Solvers with sessions: the cost never rises by a step that minimizes it, and all end at the same minimum."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from session_examples import with_times
from solver_suite import SESSION_GAPS, assert_near, make_model, make_solver, train, with_sessions

from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.errors import InputError
from mfrec.model.losses import LOSSES
from mfrec.model.objective import Objective
from mfrec.model.session_biases import SESSION_BIAS
from mfrec.options import Options
from mfrec.solvers.base import Solver, SolverSpec


@pytest.fixture(scope="module")
def ratings(weighted_ratings: Ratings) -> Ratings:
    return with_times(weighted_ratings)


@pytest.mark.parametrize("options", [{"cg_steps": 1}, {"cg_steps": 3}, {"solve": "cholesky"}])
@pytest.mark.parametrize("session_l2", [0.0, 2.0])
def test_no_sweep_of_als_raises_the_cost(ratings, odd_features, options, session_l2):
    objective, sessions = Objective(0.3, session_l2=session_l2), Sessions(ratings, SESSION_GAPS)
    model = make_model(ratings, init="uniform", sessions=sessions, **odd_features.options())
    solver = make_solver("als", model, ratings, objective, relaxation=1.0, **options)
    costs = [float(objective.cost(model, ratings))]
    for _ in range(20):
        solver.epoch()
        costs.append(float(objective.cost(model, ratings)))
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(costs))
    assert costs[-1] < 0.9 * costs[0]


@pytest.mark.parametrize(
    ("name", "options", "epochs"),
    [
        ("als", {"relaxation": 1.0, "cg_steps": 5}, 200),
        ("als", {"relaxation": 1.0, "solve": "cholesky"}, 200),
        ("quasi-newton", {"iterations": 300}, 2),
        ("quasi-newton", {"iterations": 300, "method": "cg"}, 2),
        ("gd", {"lr": 0.02}, 1500),
        ("optim", {"optimizer": "lbfgs", "lr": 1.0}, 60),
    ],
)
def test_solvers_with_sessions_end_at_the_same_minimum(name, options, epochs, ratings):
    """Without factors J is convex; its minimum is a linear system in biases and session biases."""
    objective, sessions = Objective(0.7, 0.7, session_l2=0.5), Sessions(ratings, SESSION_GAPS)
    model, expected = (make_model(ratings, 0, sessions=sessions) for _ in range(2))
    n_users, n_items, n = ratings.n_users, ratings.n_items, len(ratings)
    A = torch.zeros(n, n_users + n_items + len(sessions)).double()
    A[torch.arange(n), ratings.users.long()] = 1
    A[torch.arange(n), n_users + ratings.items.long()] = 1
    for numbers in sessions.at(ratings.users, ratings.timestamps):
        A[torch.arange(n), n_users + n_items + numbers] = 1
    penalty = torch.full((A.shape[1],), 0.7).double()
    penalty[n_users + n_items :] = 0.5
    rhs = A.T @ (ratings.weights * expected.targets(ratings))
    minimum = torch.linalg.solve(A.T @ (ratings.weights[:, None] * A) + torch.diag(penalty), rhs)
    parts = minimum[:, None].split([n_users, n_items, len(sessions)])
    with torch.no_grad():
        for key, part in zip(("users.bias.weight", "items.bias.weight", SESSION_BIAS), parts, strict=True):
            expected.get_parameter(key).copy_(part)
    train(make_solver(name, model, ratings, objective, **options), epochs)
    assert_near(model, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "block-sgd"])
@pytest.mark.parametrize("loss", LOSSES)
def test_stochastic_solvers_with_sessions_end_near_the_minimum(name, loss, ratings):
    objective, costs = Objective(0.7, 0.7, "rating", LOSSES[loss], session_l2=0.5), []
    for solver, options, epochs in ((name, {"lr": 0.005}, 400), ("quasi-newton", {"iterations": 300}, 2)):
        model = make_model(ratings, 0, sessions=Sessions(ratings, SESSION_GAPS))
        before = float(objective.cost(model, ratings))
        train(make_solver(solver, model, ratings, objective, **options), epochs)
        costs.append(float(objective.cost(model, ratings)))
    reached, least = costs
    assert least < 0.9 * before
    assert reached - least < 0.01 * (before - least)


@pytest.mark.parametrize(
    ("name", "options"), [("gd", {"lr": 0.004}), ("sgd", {"lr": 0.02}), ("block-sgd", {"lr": 0.02}), ("als", {})]
)
def test_weights_of_two_with_twice_the_penalty_and_half_the_step_change_nothing_with_sessions(
    name, options, odd_ratings
):
    r, sessions = with_sessions(odd_ratings, name)
    doubled = torch.full((len(r),), 2.0)
    twice, models = Ratings(r.users, r.items, r.values, r.n_users, r.n_items, r.timestamps, doubled), []
    for ratings, scale in ((r, 1), (twice, 2)):
        model = make_model(ratings, **sessions)
        scaled = {option: value / scale for option, value in options.items()}
        objective = Objective(scale * 0.7, scale * 0.2, session_l2=scale * 0.5)
        train(make_solver(name, model, ratings, objective, **scaled), 5)
        models.append(model)
    assert_near(*models, atol=1e-10)


def test_a_solver_without_sessions_refuses_them_by_name(ratings):
    spec = SolverSpec("Nothing at all.", Options, Solver, frozenset({"features", "losses"}))
    message = r"^this solver does not support session biases; use sgd, block-sgd, "
    with pytest.raises(InputError, match=message):
        spec(make_model(ratings, sessions=Sessions(ratings, SESSION_GAPS)), ratings, Objective())


@pytest.mark.parametrize("name", ["als", "sgd", "gibbs"])
def test_a_solver_whose_ratings_have_no_timestamps_is_refused(name, ratings, weighted_ratings):
    model = make_model(ratings, sessions=Sessions(ratings, SESSION_GAPS))
    with pytest.raises(InputError, match=re.escape("sessions need timestamps, which these ratings lack")):
        make_solver(name, model, weighted_ratings, Objective()).epoch()
