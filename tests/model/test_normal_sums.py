"""Sums over rows' ratings: the regressions that they make are those of the sparse products."""

from __future__ import annotations

import pytest
import torch
from test_ridge import OBJECTIVE, TERMS, make_model
from torch.testing import assert_close

from mfrec.data.ratings import Ratings
from mfrec.model import normal_sums
from mfrec.model.entity import ITEM, USER
from mfrec.model.normal_sums import NormalSums
from mfrec.model.ratings_view import RatingsView, ratings_views, reweighted
from mfrec.model.ridge import minimize

CLOSE = {torch.float64: {"atol": 1e-10, "rtol": 1e-9}, torch.float32: {"atol": 3e-4, "rtol": 3e-4}}


def views_of(ratings: Ratings, model, scaled: bool) -> tuple[RatingsView, RatingsView]:
    views, generator = ratings_views(model, ratings), torch.Generator().manual_seed(3)
    tau = [torch.rand(n, 1, generator=generator, dtype=model.dtype) + 0.5 for n in (11, 13)]
    return reweighted(views, tau) if scaled else views


@pytest.mark.parametrize("n", TERMS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_terms_are_solved_from_sums_as_by_products(odd_ratings, weighted_ratings, odd_features, n, weighted, dtype):
    ratings = (weighted_ratings if weighted else odd_ratings).to(dtype=dtype)
    model, generator = make_model(ratings, odd_features), torch.Generator().manual_seed(5)
    term = model.all_terms[n]
    view, partners = views_of(ratings, model, weighted)[term.entity], model.entity_factors(1 - term.entity)
    ridge, weights = OBJECTIVE.ridge(model, ratings, term), model.weights(term)
    shift = torch.randn(weights.shape, generator=generator, dtype=dtype)
    for variances in (None, torch.rand(partners.shape, generator=generator, dtype=dtype)):
        sums = normal_sums.normal_sums(view, partners, variances)
        for steps in (0, 1, 3):
            options = {"rhs_shift": shift, "variances": variances, "noise_std": 0.5, "seed": 6}
            actual, expected = (minimize(model, term, view, ridge, steps, sums=s, **options) for s in (sums, None))
            for a, b in zip(actual, expected, strict=True):
                assert_close(a, b, **CLOSE[dtype])


@pytest.mark.parametrize("n", TERMS)
@torch.no_grad()
def test_the_variances_of_partners_penalize_whole_rows(weighted_ratings, odd_features, n):
    # Ratings 0 of partners of √v in one column each, added to the others, have the same cost.
    model = make_model(weighted_ratings, odd_features)
    term, generator = model.all_terms[n], torch.Generator().manual_seed(4)
    view, partners = ratings_views(model, weighted_ratings)[term.entity], model.entity_factors(1 - term.entity)
    variances = torch.rand(partners.shape, generator=generator, dtype=torch.float64)
    ridge, rows = OBJECTIVE.ridge(model, weighted_ratings, term), model.entity_factors(term.entity)
    before = model.weights(term)

    def cost() -> float:
        theta, (j, i) = model.entity_factors(term.entity), (view.pattern.row.long(), view.pattern.col.long())
        errors = view.targets - (theta[j] * partners[i]).sum(1)
        penalty = (theta.square()[j] * variances[i] * view.free).sum(1)
        return float((view.weights * (errors.square() + penalty)).sum() + (ridge * model.weights(term).square()).sum())

    minimum, _ = minimize(model, term, view, ridge, 200, variances=variances)
    model.assign(term, minimum)
    lowest = cost()
    for _ in range(20):
        step = 1e-3 * torch.randn(before.shape, generator=generator, dtype=torch.float64) * view.free
        model.assign(term, minimum + step)
        assert cost() > lowest
    model.assign(term, before)
    assert torch.equal(model.entity_factors(term.entity), rows)
    assert cost() > lowest


@pytest.mark.parametrize("entity", [USER, ITEM])
@pytest.mark.parametrize("columns", [1, 4, 1000])
@torch.no_grad()
def test_the_sums_are_those_of_the_ratings_in_blocks_of_any_size(weighted_ratings, entity, columns, monkeypatch):
    monkeypatch.setattr(normal_sums, "COLUMNS", columns)
    model = make_model(weighted_ratings)
    view, partners = ratings_views(model, weighted_ratings)[entity], model.entity_factors(1 - entity)
    sums = normal_sums.normal_sums(view, partners, partners.square())
    assert isinstance(sums, NormalSums)
    normal, rhs = torch.zeros_like(sums.normal), torch.zeros_like(sums.rhs)
    for n, (row, col) in enumerate(zip(view.pattern.row.tolist(), view.pattern.col.tolist(), strict=True)):
        normal[row] += view.weights[n] * torch.outer(partners[col], partners[col])
        rhs[row] += view.weights[n] * view.targets[n] * partners[col]
    assert_close(sums.normal, normal)
    assert_close(sums.rhs, rhs)
    assert_close(sums.spread, normal.diagonal(dim1=1, dim2=2))


@torch.no_grad()
def test_sums_that_take_too_much_memory_are_not_made(weighted_ratings, monkeypatch):
    model = make_model(weighted_ratings)
    view, partners = ratings_views(model, weighted_ratings)[USER], model.entity_factors(ITEM)
    monkeypatch.setattr(normal_sums, "MAX_NUMBERS", 11 * 4 * 4 - 1)
    assert normal_sums.normal_sums(view, partners) is None
    monkeypatch.setattr(normal_sums, "MAX_NUMBERS", 11 * 4 * 4)
    assert normal_sums.normal_sums(view, partners) is not None


@torch.no_grad()
def test_any_number_of_threads_makes_the_same_bits(weighted_ratings, odd_features, threads):
    ratings = weighted_ratings.to(dtype=torch.float32)
    model, results = make_model(ratings, odd_features), []
    for n in (threads, 1):
        torch.set_num_threads(n)
        parts = []
        for term in model.all_terms:
            view, partners = views_of(ratings, model, True)[term.entity], model.entity_factors(1 - term.entity)
            sums, ridge = normal_sums.normal_sums(view, partners, partners.square()), 0.5 * view.free
            parts += minimize(model, term, view, ridge, 3, variances=partners.square(), sums=sums)
        results.append(parts)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
