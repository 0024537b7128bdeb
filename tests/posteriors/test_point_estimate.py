"""A new row of a point estimate is at the minimum of J, as after a training step, for every solver that minimizes J."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import DenseFeatures, features_of
from posterior_examples import (
    OBJECTIVE,
    a_model,
    a_point_estimate,
    assert_minimum,
    mirrored,
    ratings_of,
    row_parameters,
    seeded,
    started,
)
from torch.testing import assert_close

from mfrec.data.features import Features, implicit_features
from mfrec.errors import InputError
from mfrec.inference.fold_in import fold_in_items, fold_in_users
from mfrec.model.entity import ENTITY_NAMES, ITEM, USER
from mfrec.model.objective import L2_SCALINGS, Objective
from mfrec.model.offsets import OFFSETS
from mfrec.posteriors.point_estimate import PointEstimate
from mfrec.solvers.base import Solver
from mfrec.solvers.registry import SOLVERS

MINIMIZERS = [name for name, spec in SOLVERS.items() if spec.load().inference is Solver.inference]


@pytest.mark.parametrize("l2_scaling", L2_SCALINGS)
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("weighted", [False, True])
def test_folding_in_is_the_half_sweep_of_als(odd_ratings, weighted_ratings, l2_scaling, biases, offset, weighted):
    ratings, objective = weighted_ratings if weighted else odd_ratings, Objective(0.3, 0.1, l2_scaling)
    model = started(ratings, biases=biases, offset=offset)
    before = copy.deepcopy(model)
    SOLVERS["als"](model, ratings, objective, solve="cholesky", relaxation=1.0).epoch()
    users = fold_in_users(PointEstimate(before, objective), ratings).mean_model()
    assert_close(users.augmented_factors(), (model.augmented_factors()[USER], before.augmented_factors()[ITEM]))
    per_item = {"offset": model.offset} if offset == "item" else {}
    items = fold_in_items(PointEstimate(model, objective), ratings, **per_item).mean_model()
    assert_close(items.augmented_factors(), model.augmented_factors())
    assert_close(items.predict_observed(ratings), model.predict_observed(ratings))


def test_with_features_it_is_the_last_step_of_the_half_sweep(weighted_ratings, odd_features):
    ratings, options = weighted_ratings, odd_features.options()
    model = started(ratings, **options)
    before = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("items")}
    SOLVERS["als"](model, ratings, OBJECTIVE, solve="cholesky", relaxation=1.0).epoch()
    items = fold_in_items(a_point_estimate(model), ratings, features=options["item_features"])
    assert_close(items.mean_model().augmented_factors(), model.augmented_factors())
    halfway = copy.deepcopy(model)
    halfway.load_state_dict(before, strict=False)
    users = fold_in_users(a_point_estimate(halfway), ratings, features=options["user_features"])
    expected = (model.augmented_factors()[USER], halfway.augmented_factors()[ITEM])
    assert_close(users.mean_model().augmented_factors(), expected)


@pytest.mark.parametrize(
    ("name", "featured"),
    [(name, featured) for name in MINIMIZERS for featured in {False, "features" in SOLVERS[name].supports}],
)
@pytest.mark.parametrize("l2_scaling", ["row", "rating"])
def test_new_rows_of_every_minimizer_are_where_the_gradient_is_zero(
    weighted_ratings, odd_features: DenseFeatures, name, featured, l2_scaling
):
    ratings, objective = weighted_ratings, Objective(0.3, 0.1, l2_scaling)
    users, items = ratings_of(5, ratings.n_items), mirrored(ratings_of(4, ratings.n_users))
    trained_features: dict[str, dict[str, Features]] = {}
    of_users: dict[str, Features] = {}
    of_items: dict[str, Features] = {}
    if featured:
        kinds = {USER: odd_features.user["kind"], ITEM: odd_features.item["kind"]}
        implicit = implicit_features(ratings, "users")
        trained_features["user_features"] = {"implicit": implicit, "kind": features_of(kinds[USER])}
        trained_features["item_features"] = {"kind": features_of(kinds[ITEM])}
        of_users = {"kind": features_of(kinds[USER][:5]), "implicit": implicit_features(users, "users")}
        of_items = {"kind": features_of(kinds[ITEM][:4])}
    model = started(ratings, **trained_features)
    solver = SOLVERS[name](model, ratings, objective, generator=seeded(0))
    for _ in range(3):
        solver.epoch()
    posterior = solver.inference()
    folded = fold_in_users(posterior, users, features=of_users)
    assert_minimum(model, folded, USER, users, of_users, objective)
    folded = fold_in_items(posterior, items, features=of_items)
    assert_minimum(model, folded, ITEM, items, of_items, objective)


@pytest.mark.parametrize("entity", [USER, ITEM])
@pytest.mark.parametrize("featured", [False, True])
def test_non_negative_rows_meet_the_conditions_of_their_minimum(entity, featured):
    name, kinds = ENTITY_NAMES[entity], features_of(torch.eye(3).double()[torch.arange(8) % 3])
    model = a_model(8, 8, rank=3, nonnegative=True, **({f"{name}_features": {"kind": kinds}} if featured else {}))
    ratings = ratings_of(8, 8) if entity == USER else mirrored(ratings_of(8, 8))
    features = {"kind": kinds} if featured else {}
    folded = (fold_in_users, fold_in_items)[entity](a_point_estimate(model), ratings, features=features)
    values, gradients = row_parameters(model, folded, entity, ratings, features, OBJECTIVE)
    factors, gradient = values[f"{name}s.factors.weight"], gradients[f"{name}s.factors.weight"]
    assert float(factors.min()) > -1e-12
    at_zero = factors < 1e-12
    assert 5 < int(at_zero.sum()) < at_zero.numel() - 5
    assert float(gradient[at_zero].min()) > -1e-4
    assert float(gradient[at_zero].max()) > 0.1
    assert_close(gradient[~at_zero], torch.zeros_like(gradient[~at_zero]), atol=1e-4, rtol=0)
    bias, slope = values[f"{name}s.bias.weight"], gradients[f"{name}s.bias.weight"]
    assert_close(slope, torch.zeros_like(slope), atol=1e-4, rtol=0)
    assert float(bias.min()) < -0.1


@torch.no_grad()
def test_new_items_of_new_users_of_a_non_negative_model_are_non_negative():
    users = fold_in_users(a_point_estimate(a_model(nonnegative=True)), ratings_of(5, 8))
    items = fold_in_items(users, mirrored(ratings_of(6, 5))).mean_model()
    assert float(items.item_factors.weight.min()) > -1e-12


@pytest.mark.parametrize("nonnegative", [False, True])
def test_other_losses_than_the_squared_error_are_refused_unless_there_are_no_ratings(nonnegative):
    model, objective = (
        a_model(nonnegative=nonnegative),
        Objective(0.3, loss=lambda p, t: ((p - t).abs(), (p - t).sign())),
    )
    posterior, ratings = PointEstimate(model, objective), ratings_of(2, 8)
    with pytest.raises(InputError, match="fold-in solves least squares; train with the squared error"):
        fold_in_users(posterior, ratings)
    nothing = ratings.select(torch.zeros(len(ratings), dtype=torch.bool))
    folded = fold_in_users(posterior, nothing).mean_model()
    items = torch.arange(8)
    assert_close(folded.predict(items * 0, items), 3.0 + model.item_bias.weight.detach()[:, 0])
