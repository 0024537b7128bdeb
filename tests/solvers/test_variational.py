"""The bound is what its page says, and no update lowers it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from mfrec.data.ratings import Ratings, random_split
from mfrec.evaluation.metrics import coverage, rmse
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.posteriors.posterior import NOISE_SHAPE
from mfrec.solvers.variational import VariationalBayes


@pytest.fixture(scope="module")
def ratings() -> Ratings:
    """1,500 ratings of 60 × 50 in float64, weighted, by two factors; user 59 and item 0 have none."""
    generator = torch.Generator().manual_seed(0)
    users, items = torch.cartesian_prod(torch.arange(59), torch.arange(1, 50))[
        torch.randperm(59 * 49, generator=generator)[:1500]
    ].T
    P, Q = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (60, 50))
    weights = 0.5 + torch.rand(1500, generator=generator, dtype=torch.float64)
    noise = 0.4 * torch.randn(1500, generator=generator, dtype=torch.float64) / weights.sqrt()
    values = 3 + (P[users] * Q[items]).sum(1) + noise
    return Ratings(users, items, values, 60, 50, weights=weights)


def a_solver(ratings: Ratings, biases: bool = True, rank: int = 3, **knobs) -> VariationalBayes:
    generator = torch.Generator().manual_seed(1)
    model = MatrixFactorization.from_ratings(ratings, rank, biases=biases, generator=generator)
    return VariationalBayes(model, ratings, Objective(), **knobs)


def naive_bound(solver: VariationalBayes) -> float:
    """L by loops over ratings, rows and columns, as the module's page writes it."""
    (theta, x), (s, v), ratings = (t.tolist() for t in solver.model.tables()), solver.variances, solver.ratings
    s, v = s.tolist(), v.tolist()
    gammas = [torch.distributions.Gamma(*solver.gammas[side][:, :, 0]) for side in (0, 1)]
    t = [gamma.mean.tolist() for gamma in gammas]
    log_t = [(torch.digamma(g.concentration) - g.rate.log()).tolist() for g in gammas]
    targets, w = solver.model.targets(ratings).tolist(), ratings.weights.tolist()
    L = 0.0
    for n, (j, i) in enumerate(zip(ratings.users.tolist(), ratings.items.tolist(), strict=True)):
        e2 = (targets[n] - sum(a * b for a, b in zip(theta[j], x[i], strict=True))) ** 2
        for c in range(len(theta[j])):
            e2 += theta[j][c] ** 2 * v[i][c] + s[j][c] * x[i][c] ** 2 + s[j][c] * v[i][c]
        noise = solver.alpha * w[n] * t[0][j] * t[1][i]
        L += 0.5 * (math.log(solver.alpha * w[n] / (2 * math.pi)) + log_t[0][j] + log_t[1][i] - noise * e2)
    tables = ((theta, s, solver.precision[0][0], 0), (x, v, solver.precision[1][0], 1))
    for table, variances, precision, side in tables:
        for row, spread in zip(table, variances, strict=True):
            for c, (value, variance) in enumerate(zip(row, spread, strict=True)):
                if solver.sides[side].free[0, c]:
                    p = float(precision[c])
                    L += 0.5 * (math.log(p) - p * (value**2 + variance) + math.log(variance) + 1)
    prior = torch.distributions.Gamma(*torch.full((2,), NOISE_SHAPE, dtype=torch.float64))
    return L - sum(float(torch.distributions.kl_divergence(gamma, prior).sum()) for gamma in gammas)


@pytest.mark.parametrize("biases", [False, True])
def test_the_bound_is_that_of_the_plain_loops(ratings, biases):
    solver = a_solver(ratings, biases)
    for _ in range(4):
        assert solver.epoch()["bound"] == pytest.approx(naive_bound(solver), rel=1e-10)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("cg_steps", [1, 2, 30])
@pytest.mark.parametrize("rank", [1, 6])
def test_the_bound_never_falls(ratings, biases, cg_steps, rank):
    solver = a_solver(ratings, biases, rank, cg_steps=cg_steps)
    bounds = [solver.epoch()["bound"] for _ in range(60)]
    assert all(after >= before - 1e-9 * abs(before) for before, after in pairwise(bounds))
    assert bounds[-1] > bounds[0] + 10


def test_the_learned_noise_is_what_was_planted(ratings):
    solver = a_solver(ratings, rank=2)
    for _ in range(200):
        values = solver.epoch()
    assert values["noise_deviation"] == pytest.approx(0.4, rel=0.15)


def test_a_factor_too_many_is_shrunk_away(ratings):
    solver = a_solver(ratings, rank=6)
    for _ in range(300):
        solver.epoch()
    sizes = solver.model.item_factors.weight.detach().norm(dim=0).sort(descending=True).values
    assert float(sizes[3]) < 0.1 * float(sizes[1])


def test_ninety_in_a_hundred_held_out_ratings_are_in_their_intervals(ratings):
    train, test = ratings.split(random_split(ratings, 0.3, torch.Generator().manual_seed(5)))
    solver = a_solver(train, rank=2)
    for _ in range(60):
        solver.epoch()
    assert rmse(solver.model.predict_observed(test), test.values) < 0.7
    assert 0.82 < coverage(solver.model, solver.posterior, test) < 0.98
