"""Alternating least squares: each half-sweep ends where its gradient is zero, and no sweep raises the cost."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from conftest import features_of
from solver_suite import assert_near, make_model, make_solver, supporting, train
from torch.testing import assert_close

from mfrec.errors import InputError
from mfrec.model import ridge
from mfrec.model.entity import ITEM, Term
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import L2_SCALINGS, Objective

EXACT = [{"solve": "cholesky", "cg_steps": 80}, {"solve": "cg", "cg_steps": 80}]


def watch_assignments(monkeypatch: pytest.MonkeyPatch, model: MatrixFactorization, record: Any) -> None:
    """Call `record(term)` whenever a term of the model has been assigned."""
    assign = model.assign

    def watched(term: Term, weights: torch.Tensor) -> None:
        assign(term, weights)
        record(term)

    monkeypatch.setattr(model, "assign", watched)


@pytest.mark.parametrize("l2_scaling", L2_SCALINGS)
@pytest.mark.parametrize(("biases", "offset"), [(True, "item"), (False, "none")])
@pytest.mark.parametrize("options", EXACT)
def test_a_sweep_ends_where_the_gradient_of_the_items_is_zero(odd_ratings, l2_scaling, biases, offset, options):
    objective = Objective(0.7, 0.2, l2_scaling)
    model = make_model(odd_ratings, biases=biases, offset=offset, init="uniform")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    make_solver("als", model, odd_ratings, objective, relaxation=1.0, **options).epoch()
    for name, gradient in objective.gradients(model, odd_ratings).items():
        if name.startswith("items"):
            assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0)
        else:
            assert not torch.equal(model.get_parameter(name), before[name])


@pytest.mark.parametrize("l2_scaling", L2_SCALINGS)
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("item_ids", [False, True])
@pytest.mark.parametrize("options", EXACT)
def test_each_term_ends_where_the_gradient_of_its_parameters_is_zero(
    weighted_ratings, odd_features, l2_scaling, biases, item_ids, options, monkeypatch
):
    objective = Objective(0.7, 0.2, l2_scaling)
    model = make_model(weighted_ratings, biases=biases, item_ids=item_ids, init="uniform", **odd_features.options())
    assigned: list[str] = []

    def record(term: Term) -> None:
        gradients = objective.gradients(model, weighted_ratings)
        for name in term.columns:
            assert float(gradients[name].abs().max()) < 1e-8, name
        assigned.extend(term.columns)

    watch_assignments(monkeypatch, model, record)
    train(make_solver("als", model, weighted_ratings, objective, relaxation=1.0, **options), 2)
    assert sorted(assigned) == sorted(2 * list(dict(model.named_parameters())))


@pytest.mark.parametrize("relaxation", [0.3, 1.0])
@pytest.mark.parametrize("options", [{"cg_steps": 1}, {"cg_steps": 3}, {"solve": "cholesky"}])
def test_no_half_sweep_raises_the_cost(weighted_ratings, odd_features, relaxation, options, monkeypatch):
    objective, model = Objective(0.3), make_model(weighted_ratings, init="uniform", **odd_features.options())
    costs = [float(objective.cost(model, weighted_ratings))]
    watch_assignments(monkeypatch, model, lambda term: costs.append(float(objective.cost(model, weighted_ratings))))
    train(make_solver("als", model, weighted_ratings, objective, relaxation=relaxation, **options), 10)
    assert len(costs) == 61
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(costs))


@torch.no_grad()
def test_relaxation_goes_that_fraction_of_the_way(odd_ratings):
    models = [make_model(odd_ratings, init="uniform") for _ in range(3)]
    for model, relaxation in zip(models[1:], (0.25, 1.0), strict=True):
        solver = make_solver("als", model, odd_ratings, Objective(0.7), solve="cholesky", relaxation=relaxation)
        solver.terms = solver.terms[:1]
        solver.epoch()
    start, quarter, full = (model.user_factors.weight for model in models)
    assert_close(quarter, start + 0.25 * (full - start))


def test_exact_and_iterative_sweeps_agree_in_blocks_of_rows(odd_ratings, monkeypatch):
    monkeypatch.setattr(ridge, "NORMAL_NUMBERS", 60)  # two or three rows a block
    models = [make_model(odd_ratings, init="uniform") for _ in EXACT]
    for model, options in zip(models, EXACT, strict=True):
        solver = make_solver("als", model, odd_ratings, Objective(0.7, l2_scaling="rating"), relaxation=1.0, **options)
        train(solver, 3)
    assert_near(*models, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{"cg_steps": 1}, {"cg_steps": 60}, {"solve": "cholesky"}])
def test_without_a_penalty_training_stays_finite(odd_ratings, dtype, options):
    # At rank 8 with biases, most rows have fewer ratings than numbers.
    ratings, objective = odd_ratings.to(dtype=dtype), Objective()
    model = make_model(ratings, rank=8)
    before = float(objective.cost(model, ratings))
    train(make_solver("als", model, ratings, objective, **options), 20)
    assert max(float(parameter.detach().abs().max()) for parameter in model.parameters()) < 100
    assert float(objective.cost(model, ratings)) < 0.01 * before


@pytest.mark.parametrize("options", EXACT)
def test_a_rating_with_almost_no_weight_is_almost_left_out(odd_ratings, odd_features, options):
    r, is_light = odd_ratings, torch.arange(len(odd_ratings)) % 4 == 0
    weighted = type(r)(r.users, r.items, r.values, r.n_users, r.n_items, weights=torch.where(is_light, 1e-14, 1.0))
    models = []
    for ratings in (weighted, r.select(~is_light)):
        # The penalty per row does not count ratings, and without an offset their values have no other effect.
        model = make_model(r, offset="none", init="uniform", **odd_features.options())
        train(make_solver("als", model, ratings, Objective(0.7), relaxation=1.0, **options), 4)
        models.append(model)
    assert_near(*models, atol=1e-6)


def test_an_unrated_item_has_factors_by_its_features_alone(odd_ratings, odd_features):
    # Item 0 and item 12 have no rating; item 12 loses its features.
    features = torch.where(torch.arange(13)[:, None] == 12, 0.0, odd_features.item["full"])
    model = make_model(odd_ratings, item_features={"full": features_of(features)})
    train(make_solver("als", model, odd_ratings, Objective(0.5)), 20)
    assert not bool(model.item_factors.weight[[0, 12]].any())
    assert not bool(model.factors(ITEM)[12].any())
    assert float(model.factors(ITEM)[0].norm()) > 0.01
    assert_close(model.factors(ITEM)[0], features[0] @ model.items.feature_blocks["full"].factors.weight.detach())


# non-negative factors


@pytest.mark.parametrize("l2_scaling", L2_SCALINGS)
@pytest.mark.parametrize(("biases", "offset"), [(True, "item"), (False, "none")])
@pytest.mark.parametrize("relaxation", [0.3, 1.0])
def test_a_pass_over_the_columns_never_raises_the_cost(
    weighted_ratings, l2_scaling, biases, offset, relaxation, monkeypatch
):
    objective = Objective(0.3, 0.1, l2_scaling)
    model = make_model(weighted_ratings, biases=biases, offset=offset, nonnegative=True, init="uniform")
    costs = [float(objective.cost(model, weighted_ratings))]
    watch_assignments(monkeypatch, model, lambda term: costs.append(float(objective.cost(model, weighted_ratings))))
    train(make_solver("als", model, weighted_ratings, objective, relaxation=relaxation), 20)
    assert len(costs) == 41
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(costs))
    assert costs[-1] < 0.5 * costs[0]


def test_one_column_is_solved_by_its_pass_as_exactly_as_by_cholesky(weighted_ratings):
    # With one factor and no biases a row's problem has one number, whose minimum is 0 or above.
    models = [make_model(weighted_ratings, rank=1, biases=False, init="uniform", nonnegative=n) for n in (True, False)]
    for model in models:
        solver = make_solver("als", model, weighted_ratings, Objective(0.5), solve="cholesky", relaxation=1.0)
        solver.terms = solver.terms[:1]
        solver.epoch()
    unbounded = models[1].user_factors.weight
    assert bool((unbounded < 0).any())
    assert_close(models[0].user_factors.weight, unbounded.clamp_min(0))


def test_features_of_a_non_negative_model_are_refused_by_name(odd_ratings, odd_features):
    alternatives = ", ".join(name for name in supporting("features", "non-negative") if name != "als")
    message = f"als does not support features in a non-negative model; use {alternatives}"
    for key, blocks in odd_features.options().items():
        model = make_model(odd_ratings, nonnegative=True, **{key: blocks})
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            make_solver("als", model, odd_ratings, Objective())
