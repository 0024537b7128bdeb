"""Variational Bayes: the bound is the formula of the module's docstring, and no update lowers it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import features_of
from solver_suite import train

from mfrec.data.features import Features, implicit_features
from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.data.splits import random_split
from mfrec.evaluation.metrics import coverage, rmse
from mfrec.inference.fold_in import fold_in_users
from mfrec.model import normal_sums
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.model.ratings_view import retargeted
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


@pytest.fixture(scope="module")
def timed(ratings) -> Ratings:
    """The ratings with times, in sessions whose members have a bias in common."""
    generator = torch.Generator().manual_seed(4)
    page = torch.randint(6, (60, 50), generator=generator)[ratings.users.long(), ratings.items.long()]
    bias = torch.randn(60, 6, generator=generator, dtype=torch.float64)[ratings.users.long(), page]
    seconds = 1000 * page + torch.randint(40, page.shape, generator=generator)
    return Ratings(
        ratings.users, ratings.items, ratings.values + 0.5 * bias, 60, 50, timestamps=seconds, weights=ratings.weights
    )


@pytest.fixture(scope="module")
def features(ratings) -> dict[str, dict[str, Features]]:
    """Who rated what, and side information of both signs that some rows lack."""
    generator = torch.Generator().manual_seed(3)

    def blocks(entity: str, n_rows: int) -> dict[str, Features]:
        side = torch.randn(n_rows, 4, generator=generator, dtype=torch.float64)
        side[torch.rand(side.shape, generator=generator) < 0.4] = 0
        return {"implicit": implicit_features(ratings, entity), "side": features_of(side)}

    return {"user_features": blocks("users", 60), "item_features": blocks("items", 50)}


def make_solver(
    ratings: Ratings,
    biases: bool = True,
    rank: int = 3,
    model_options: Mapping[str, Any] | None = None,
    **options,
) -> VariationalBayes:
    generator = torch.Generator().manual_seed(1)
    model = MatrixFactorization.from_ratings(ratings, rank, biases=biases, generator=generator, **(model_options or {}))
    solver = SOLVERS["vb"](model, ratings, Objective(), **options)
    assert isinstance(solver, VariationalBayes)
    return solver


def naive_variances(solver: VariationalBayes, entity: int) -> list[list[float]]:
    """The variances of an entity's rows: those of their own factors, and of the weights of their features."""
    total = torch.zeros_like(solver.variances[entity])
    for term, variances in zip(solver.terms, solver.term_variances, strict=True):
        if term.entity == entity and term.features is None:
            total += variances
        elif term.entity == entity:
            F = term.features.matrix
            for j, f, value in zip(F.pattern.row.tolist(), F.pattern.col.tolist(), F.values.tolist(), strict=True):
                total[j] += value**2 * variances[f]
    return total.tolist()


def naive_session_bound(solver: VariationalBayes) -> tuple[float, list[float]]:
    """The part of L of the session biases, and the variance that they add to each rating."""
    field, ratings = solver.sessions, solver.ratings
    if field is None:
        return 0.0, [0.0] * len(ratings)
    sessions = field.biases.sessions
    L, nu = 0.0, field.freedom
    for level, (first, end) in enumerate(pairwise(sessions.starts)):
        p = float(field.precision[level])
        for g in range(first, end):
            m, variance, rate = (float(t.detach()[g]) for t in (field.biases.bias.weight, field.variances, field.rates))
            scale, log_scale = 1.0, 0.0
            if nu is not None:
                gamma = torch.distributions.Gamma(*torch.tensor([0.5 * (nu + 1), rate], dtype=torch.float64))
                prior = torch.distributions.Gamma(*torch.tensor([0.5 * nu, 0.5 * nu], dtype=torch.float64))
                scale = float(gamma.mean)
                log_scale = float(torch.digamma(gamma.concentration) - gamma.rate.log())
                L -= float(torch.distributions.kl_divergence(gamma, prior))
            L += 0.5 * (math.log(p) + log_scale - p * scale * (m**2 + variance) + math.log(variance) + 1)
    at = sessions.at(ratings.users, ratings.timestamps)
    return L, field.variances[at, 0].sum(0).tolist()


def naive_bound(solver: VariationalBayes) -> float:
    """L by loops over ratings, rows and columns, as the module's docstring writes it."""
    (theta, x), ratings = (factors.tolist() for factors in solver.model.augmented_factors()), solver.ratings
    s, v = (naive_variances(solver, entity) for entity in (USER, ITEM))
    gammas = [torch.distributions.Gamma(*solver.gammas[entity][:, :, 0]) for entity in (USER, ITEM)]
    t = [gamma.mean.tolist() for gamma in gammas]
    log_t = [(torch.digamma(g.concentration) - g.rate.log()).tolist() for g in gammas]
    targets = solver.model.targets(ratings).tolist()
    w = [1.0] * len(ratings) if ratings.weights is None else ratings.weights.tolist()
    L, session_variances = naive_session_bound(solver)
    for n, (j, i) in enumerate(zip(ratings.users.tolist(), ratings.items.tolist(), strict=True)):
        e2 = (targets[n] - sum(a * b for a, b in zip(theta[j], x[i], strict=True))) ** 2
        for c in range(len(theta[j])):
            e2 += theta[j][c] ** 2 * v[i][c] + s[j][c] * x[i][c] ** 2 + s[j][c] * v[i][c]
        e2 += session_variances[n]
        noise = solver.alpha * w[n] * t[0][j] * t[1][i]
        L += 0.5 * (math.log(solver.alpha * w[n] / (2 * math.pi)) + log_t[0][j] + log_t[1][i] - noise * e2)
    for term, variances, precision in zip(solver.terms, solver.term_variances, solver.precision, strict=True):
        for row, spread in zip(solver.model.weights(term).tolist(), variances.tolist(), strict=True):
            for c, (value, variance) in enumerate(zip(row, spread, strict=True)):
                if solver.views[term.entity].free[0, c]:
                    p = float(precision[0][c])
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


@pytest.mark.parametrize("item_ids", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_bound_with_features_is_that_of_the_plain_loops(ratings, features, item_ids, weighted):
    plain = Ratings(ratings.users, ratings.items, ratings.values, ratings.n_users, ratings.n_items)
    solver = make_solver(ratings if weighted else plain, model_options={**features, "item_ids": item_ids})
    for epoch in range(7):
        bound = solver.epoch()["bound"]
        if epoch in (0, 6):
            assert bound == pytest.approx(naive_bound(solver), rel=1e-10)


@pytest.mark.parametrize("memory", ["sums", "products"])
@pytest.mark.parametrize("item_ids", [False, True])
@pytest.mark.parametrize("feature_steps", [1, 2, 30])
def test_the_bound_never_falls_with_features(ratings, features, item_ids, feature_steps, memory, monkeypatch):
    if memory == "products":
        monkeypatch.setattr(normal_sums, "MAX_NUMBERS", 0)
    options = {**features, "item_ids": item_ids}
    solver = make_solver(ratings, rank=2, model_options=options, feature_steps=feature_steps)
    bounds = [solver.epoch()["bound"] for _ in range(60)]
    assert all(after >= before - 1e-9 * abs(before) for before, after in pairwise(bounds))
    assert bounds[-1] > bounds[0] + 10


def test_sums_and_products_make_the_same_sweeps(ratings, features, monkeypatch):
    by_sums = make_solver(ratings, model_options=features)
    train(by_sums, 8)
    monkeypatch.setattr(normal_sums, "MAX_NUMBERS", 0)
    by_products = make_solver(ratings, model_options=features)
    train(by_products, 8)
    for name, parameter in by_sums.model.state_dict().items():
        torch.testing.assert_close(by_products.model.state_dict()[name], parameter, atol=1e-8, rtol=1e-6)
    for entity in (USER, ITEM):
        torch.testing.assert_close(by_sums.variances[entity], by_products.variances[entity])


@torch.no_grad()
def test_each_update_of_a_term_is_at_the_maximum_of_the_bound(ratings, features):
    solver = make_solver(ratings, rank=2, model_options=features, cg_steps=60, feature_steps=400)
    train(solver, 6)
    for number, term in enumerate(solver.terms):
        solver._update_term(number, None)
        solver.variances[term.entity] = solver._row_variances(term.entity)
        best, means = solver.bound(), solver.model.weights(term).clone()
        for scale in (0.98, 1.02):
            solver.model.assign(term, means * scale)
            assert solver.bound() < best
            solver.model.assign(term, means)
            variances = solver.term_variances[number]
            solver.term_variances[number] = variances * scale
            solver.variances[term.entity] = solver._row_variances(term.entity)
            assert solver.bound() < best
            solver.term_variances[number] = variances
            solver.variances[term.entity] = solver._row_variances(term.entity)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("cg_steps", [1, 2, 30])
@pytest.mark.parametrize("rank", [1, 6])
def test_the_bound_never_falls(ratings, biases, cg_steps, rank):
    solver = make_solver(ratings, biases, rank, cg_steps=cg_steps)
    bounds = [solver.epoch()["bound"] for _ in range(60)]
    assert all(after >= before - 1e-9 * abs(before) for before, after in pairwise(bounds))
    assert bounds[-1] > bounds[0] + 10


@torch.no_grad()
def test_centring_raises_the_bound_to_its_maximum_over_the_offset_and_changes_no_error(ratings, features):
    solver = make_solver(ratings, model_options=features)
    counts = (ratings.user_counts, ratings.item_counts)
    train(solver, 7)
    predictions = solver.model.predict_observed(ratings)

    def bound_after(entity: int, move: float) -> float:
        """L after the rated rows' biases have gained this much, and the offset has lost it."""
        solver.model.entities[entity].bias.weight[counts[entity] > 0] += move
        solver.model.offset = solver.model.offset - move
        solver.views = retargeted(solver.views, solver.model.targets(ratings))
        return solver.bound()

    before = [bound_after(USER, 0.3), bound_after(ITEM, -0.2)][-1]
    solver._centre_biases()
    best = solver.bound()
    assert best > before
    assert best == pytest.approx(naive_bound(solver), rel=1e-10)
    torch.testing.assert_close(solver.model.predict_observed(ratings), predictions)
    for entity in (USER, ITEM):
        bias = solver.model.entities[entity].bias.weight
        assert float(bias[counts[entity] > 0].mean()) == pytest.approx(0, abs=1e-12)
        assert not bool(bias[counts[entity] == 0].any())
        for move in (-0.1, 0.1):
            assert bound_after(entity, move) < best
            assert bound_after(entity, -move) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("offset", ["none", "item"])
def test_biases_are_not_centred_without_one_offset_for_all(ratings, offset):
    solver = make_solver(ratings, model_options={"offset": offset})
    before = solver.model.targets(ratings)
    train(solver, 7)
    assert torch.equal(solver.model.targets(ratings), before)


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


@pytest.mark.parametrize("prior", ["t", "gaussian"])
@pytest.mark.parametrize("gaps", [(0, 30, 500), (30,)])
def test_the_bound_with_sessions_is_that_of_the_plain_loops(timed, gaps, prior):
    options = {"sessions": Sessions(timed, gaps)}
    solver = make_solver(timed, model_options=options, session_prior=prior)
    for epoch in range(7):
        bound = solver.epoch()["bound"]
        if epoch in (0, 6):
            assert bound == pytest.approx(naive_bound(solver), rel=1e-10)


@pytest.mark.parametrize("prior", ["t", "gaussian"])
def test_the_bound_never_falls_with_sessions(timed, features, prior):
    options = {**features, "sessions": Sessions(timed, (0, 30, 500))}
    solver = make_solver(timed, rank=2, model_options=options, session_prior=prior)
    bounds = [solver.epoch()["bound"] for _ in range(60)]
    assert all(after >= before - 1e-9 * abs(before) for before, after in pairwise(bounds))


def test_planted_session_biases_are_found(timed):
    """The errors on held-out ratings are smaller, and intervals of nine in ten hold."""
    generator = torch.Generator().manual_seed(5)
    training, test = timed.split(random_split(timed, 0.3, generator))
    errors = {}
    for name, options in {"blind": {}, "sessions": {"sessions": Sessions(training, (60,))}}.items():
        solver = make_solver(training, rank=2, model_options=options)
        train(solver, 60)
        errors[name] = rmse(solver.model.predict_observed(test), test.values)
        assert 0.82 < coverage(solver.inference(), test) < 0.98
    assert errors["sessions"] < 0.95 * errors["blind"]


@torch.no_grad()
def test_new_users_in_the_same_sessions_get_the_mean_field_of_the_training(timed):
    solver = make_solver(timed, rank=1, model_options={"sessions": Sessions(timed, (60,))}, cg_steps=4)
    train(solver, 300)
    trained = solver.inference()
    folded = fold_in_users(trained, timed)
    pairs = timed.users, timed.items
    expected = solver.model.predict(*pairs, timestamps=timed.timestamps)
    again = folded.mean_model().predict(*pairs, timestamps=timed.timestamps)
    assert float((again - expected).abs().max()) < 0.02
    torch.testing.assert_close(
        folded.std(*pairs, timestamps=timed.timestamps),
        trained.std(*pairs, timestamps=timed.timestamps),
        atol=0.01,
        rtol=0.01,
    )
    assert bool((folded.std(*pairs) > folded.std(*pairs, include_noise=False)).all())
