"""Variational Bayes: the bound is the formula of the module's docstring, and no update lowers it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from solver_suite import train

from mfrec.data.ratings import Ratings
from mfrec.data.splits import random_split
from mfrec.evaluation.metrics import coverage, rmse
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.posteriors.base import PRECISION_SCALE_SHAPE
from mfrec.solvers.registry import SOLVERS
from mfrec.solvers.variational import VariationalBayes


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    """1,500 weighted ratings of 60 × 50 in float64, by two factors; user 59 and item 0 have none."""
    generator = torch.Generator().manual_seed(0)
    users, items = torch.cartesian_prod(torch.arange(59), torch.arange(1, 50))[
        torch.randperm(59 * 49, generator=generator)[:1500]
    ].T
    P, Q = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (60, 50))
    weights = 0.5 + torch.rand(1500, generator=generator, dtype=torch.float64)
    noise = 0.4 * torch.randn(1500, generator=generator, dtype=torch.float64) / weights.sqrt()
    values = 3 + (P[users] * Q[items]).sum(1) + noise
    return Ratings(users, items, values, 60, 50, weights=weights)


def make_solver(ratings: Ratings, biases: bool = True, rank: int = 3, **options) -> VariationalBayes:
    generator = torch.Generator().manual_seed(1)
    model = MatrixFactorization.from_ratings(ratings, rank, biases=biases, generator=generator)
    solver = SOLVERS["vb"](model, ratings, Objective(), **options)
    assert isinstance(solver, VariationalBayes)
    return solver


def naive_bound(solver: VariationalBayes) -> float:
    """L by loops over ratings, rows and columns, as the module's docstring writes it."""
    (theta, x), ratings = (factors.tolist() for factors in solver.model.augmented_factors()), solver.ratings
    s, v = (variances.tolist() for variances in solver.variances)
    gammas = [torch.distributions.Gamma(*solver.gammas[entity][:, :, 0]) for entity in (USER, ITEM)]
    t = [gamma.mean.tolist() for gamma in gammas]
    log_t = [(torch.digamma(g.concentration) - g.rate.log()).tolist() for g in gammas]
    targets = solver.model.targets(ratings).tolist()
    w = [1.0] * len(ratings) if ratings.weights is None else ratings.weights.tolist()
    L = 0.0
    for n, (j, i) in enumerate(zip(ratings.users.tolist(), ratings.items.tolist(), strict=True)):
        e2 = (targets[n] - sum(a * b for a, b in zip(theta[j], x[i], strict=True))) ** 2
        for c in range(len(theta[j])):
            e2 += theta[j][c] ** 2 * v[i][c] + s[j][c] * x[i][c] ** 2 + s[j][c] * v[i][c]
        noise = solver.alpha * w[n] * t[0][j] * t[1][i]
        L += 0.5 * (math.log(solver.alpha * w[n] / (2 * math.pi)) + log_t[0][j] + log_t[1][i] - noise * e2)
    for entity, means, variances in ((USER, theta, s), (ITEM, x, v)):
        for row, spread in zip(means, variances, strict=True):
            for c, (value, variance) in enumerate(zip(row, spread, strict=True)):
                if solver.views[entity].free[0, c]:
                    p = float(solver.precision[entity][0][c])
                    L += 0.5 * (math.log(p) - p * (value**2 + variance) + math.log(variance) + 1)
    prior = torch.distributions.Gamma(*torch.full((2,), PRECISION_SCALE_SHAPE, dtype=torch.float64))
    return L - sum(float(torch.distributions.kl_divergence(gamma, prior).sum()) for gamma in gammas)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_bound_is_that_of_the_plain_loops(ratings, biases, weighted):
    plain = Ratings(ratings.users, ratings.items, ratings.values, ratings.n_users, ratings.n_items)
    solver = make_solver(ratings if weighted else plain, biases)
    # λ, τ and α are learned from the sixth sweep on.
    for epoch in range(7):
        bound = solver.epoch()["bound"]
        if epoch in (0, 6):
            assert bound == pytest.approx(naive_bound(solver), rel=1e-10)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("cg_steps", [1, 2, 30])
@pytest.mark.parametrize("rank", [1, 6])
def test_the_bound_never_falls(ratings, biases, cg_steps, rank):
    solver = make_solver(ratings, biases, rank, cg_steps=cg_steps)
    bounds = [solver.epoch()["bound"] for _ in range(60)]
    assert all(after >= before - 1e-9 * abs(before) for before, after in pairwise(bounds))
    assert bounds[-1] > bounds[0] + 10


def test_the_learned_noise_is_the_planted_noise(ratings):
    solver = make_solver(ratings, rank=2)
    train(solver, 199)
    assert solver.epoch()["noise_std"] == pytest.approx(0.4, rel=0.15)


def test_superfluous_factors_shrink_to_zero(ratings):
    solver = make_solver(ratings, rank=6)
    train(solver, 300)
    sizes = solver.model.item_factors.weight.detach().norm(dim=0).sort(descending=True).values
    assert float(sizes[3]) < 0.1 * float(sizes[1])


def test_rows_without_ratings_have_zero_means_and_the_variance_of_the_prior(ratings):
    solver = make_solver(ratings)
    train(solver, 19)
    precision = [values.clone() for values in solver.precision]
    solver.epoch()
    for entity, row in ((USER, 59), (ITEM, 0)):
        free = solver.views[entity].free[0] > 0
        variances = solver.variances[entity]
        torch.testing.assert_close(variances[row, free], 1 / precision[entity][0, free])
        assert not bool(variances[:, ~free].any())
        assert bool((variances[:, free] <= variances[row, free]).all())
        assert not bool(solver.model.augmented_factors()[entity][row, free].any())


def test_ninety_percent_of_held_out_ratings_are_in_their_intervals(ratings):
    train_ratings, test_ratings = ratings.split(random_split(ratings, 0.3, torch.Generator().manual_seed(5)))
    solver = make_solver(train_ratings, rank=2)
    train(solver, 60)
    assert rmse(solver.model.predict_observed(test_ratings), test_ratings.values) < 0.7
    assert 0.82 < coverage(solver.inference(), test_ratings) < 0.98
