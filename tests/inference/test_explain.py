"""The shares of a user's ratings add up to the prediction, and a rating as expected has none."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from conftest import features_of
from posterior_examples import (
    EXAMPLES,
    OBJECTIVE,
    a_model,
    a_point_estimate,
    conditional_moments,
    ratings_of,
    samples_of,
    seeded,
    with_new_rows,
)
from session_examples import samples_with_sessions, with_times
from torch.testing import assert_close

from mfrec.data.features import implicit_features
from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.errors import InputError
from mfrec.inference.explain import explain
from mfrec.inference.fold_in import fold_in_users
from mfrec.model.entity import ITEM, USER
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.point_estimate import PointEstimate

KINDS_OF_USERS = torch.eye(3).double()[torch.arange(6) % 3]


@pytest.mark.parametrize("kind", ["point-estimate", "mean-field"])
@torch.no_grad()
def test_the_shares_of_ratings_add_up_to_the_prediction_less_the_offset_and_the_item_s_bias(kind):
    model, single, items = a_model(), ratings_of(1, 8), torch.tensor([6, 0, 3])
    posterior = EXAMPLES[kind](model)
    shares = explain(posterior, single, items)
    predicted = fold_in_users(posterior, single).mean_model().predict(items * 0, items)
    assert shares.shape == (3, len(single))
    assert_close(shares.sum(1), predicted - 3.0 - model.item_bias.weight[items, 0])


@torch.no_grad()
def test_the_shares_of_homoscedastic_draws_add_up_to_the_prediction_less_the_prior_s_part():
    model, single, items = a_model(), ratings_of(1, 8), torch.tensor([6, 0, 3])
    samples, rated = samples_of(model, homoscedastic=True), single.items.long()
    free, prior_part = model.free_columns()[USER][0] > 0, []
    for draw in samples.draws:
        x = model.augmented_factors(draw.parameters)[ITEM]
        weights = single.weights * draw.precision_scales[ITEM][rated, 0]
        mean, _ = conditional_moments(x[rated], free, single.values * 0, weights, draw.alpha, draw.priors[USER])
        prior_part.append(x[items][:, free] @ mean + x[items, -1])
    predicted = fold_in_users(samples, single).mean_model().predict(items * 0, items)
    assert_close(explain(samples, single, items).sum(1), predicted - 3.0 - torch.stack(prior_part).mean(0))


@torch.no_grad()
def test_the_shares_of_draws_add_up_to_the_prediction_of_the_same_draws():
    model, single, items = a_model(), ratings_of(1, 8), torch.tensor([6, 0, 3])
    samples = samples_of(model, prior_mean=0.0)
    biases = torch.stack([draw.parameters["items.bias.weight"][items, 0] for draw in samples.draws]).mean(0)
    shares = explain(samples, single, items, generator=seeded(1))
    predicted = fold_in_users(samples, single, generator=seeded(1)).mean_model().predict(items * 0, items)
    assert_close(shares.sum(1), predicted - 3.0 - biases)


@pytest.mark.parametrize("kind", ["point-estimate", "samples", "homoscedastic samples"])
@torch.no_grad()
def test_with_sessions_shares_add_up_to_the_prediction_without_its_session_biases(kind):
    single, items = with_times(ratings_of(1, 8)), torch.tensor([6, 0, 3])
    model = a_model(sessions=Sessions(with_times(ratings_of(6, 8)), (0, 6)))
    if kind == "point-estimate":
        posterior: Posterior = PointEstimate(model, replace(OBJECTIVE, session_l2=2.0))
        biases = model.item_bias.weight[items, 0]
    else:
        samples = posterior = samples_with_sessions(model, homoscedastic=kind != "samples")
        samples.draws = [draw._replace(priors=[[λ, 0 * m] for λ, m in draw.priors]) for draw in samples.draws]
        biases = torch.stack([draw.parameters["items.bias.weight"][items, 0] for draw in samples.draws]).mean(0)
    shares = explain(posterior, single, items, generator=seeded(1))
    folded = fold_in_users(posterior, single, generator=seeded(1)).mean_model()
    assert_close(shares.sum(1), folded.predict(items * 0, items) - 3.0 - biases)
    # The session biases are not 0, so that without times the shares are others.
    timeless = ratings_of(1, 8)
    assert not torch.allclose(shares, explain(posterior, timeless, items, generator=seeded(1)))


@pytest.mark.parametrize("kind", [kind for kind in EXAMPLES if kind != "ordinal samples"])
@torch.no_grad()
def test_a_rating_as_expected_has_a_share_of_zero(kind):
    # If the items' biases do not differ between draws, all draws expect the same.
    model, single = a_model(), ratings_of(1, 8)
    posterior = EXAMPLES[kind](model)
    for draw in posterior.draws if "samples" in kind else ():
        draw.parameters["items.bias.weight"] = model.item_bias.weight.clone()
    single.values[2] = 3.0 + model.item_bias.weight[single.items[2], 0]
    shares = explain(posterior, single, torch.arange(8))
    assert_close(shares[:, 2], torch.zeros(8).double(), atol=1e-12, rtol=0)
    assert float(shares[:, [0, 1, 3]].abs().min()) > 1e-6


@torch.no_grad()
def test_a_share_is_what_the_prediction_loses_if_the_rating_is_as_expected():
    model, single, items = a_model(), ratings_of(1, 8), torch.arange(8)
    posterior = a_point_estimate(model)
    shares = explain(posterior, single, items)
    predicted = fold_in_users(posterior, single).mean_model().predict(items * 0, items)
    for n, item in enumerate(single.items.tolist()):
        changed = copy.deepcopy(single)
        changed.values[n] = 3.0 + model.item_bias.weight[item, 0]
        without = fold_in_users(posterior, changed).mean_model().predict(items * 0, items)
        assert_close(shares[:, n], predicted - without)


@pytest.mark.parametrize("kind", ["point-estimate", "homoscedastic samples"])
@torch.no_grad()
def test_with_implicit_features_shares_include_the_fact_that_an_item_was_rated(kind):
    blocks = {"kind": features_of(KINDS_OF_USERS), "implicit": implicit_features(ratings_of(6, 8, seed=7), "users")}
    model, single, items = a_model(user_features=blocks), ratings_of(1, 8), torch.tensor([6, 0, 3])
    samples = samples_of(model, homoscedastic=True, prior_mean=0.0)
    posterior = a_point_estimate(model) if kind == "point-estimate" else samples
    features = {"kind": features_of(KINDS_OF_USERS[1:2]), "implicit": implicit_features(single, "users")}
    predicted = fold_in_users(posterior, single, features=features).mean_model().predict(items * 0, items)
    parameters = [model.state_dict()] if kind == "point-estimate" else [draw.parameters for draw in samples.draws]
    without = []
    for each in parameters:
        whole = copy.deepcopy(model)
        whole.load_state_dict({**model.state_dict(), **each})
        whole = with_new_rows(whole, USER, 1, features, model.offset)
        for name, parameter in whole.named_parameters():
            if "implicit" in name:
                parameter.zero_()
        without.append(whole.predict(items * 0, items))
    shares = explain(posterior, single, items, features=features)
    assert_close(shares.sum(1), predicted - torch.stack(without).mean(0))


@torch.no_grad()
def test_with_implicit_features_a_rating_as_expected_still_counts_as_rated():
    blocks = {"implicit": implicit_features(ratings_of(6, 8, seed=7), "users")}
    model, single, items = a_model(user_features=blocks), ratings_of(1, 8), torch.tensor([6, 0, 3])
    features = {"implicit": implicit_features(single, "users")}
    expected = with_new_rows(model, USER, 1, features, model.offset).predict_observed(single)
    as_expected = Ratings(single.users, single.items, expected, 1, 8, weights=single.weights)
    weights = model.weights(model.terms(USER)[1])[single.items.long()]
    rated = model.augmented_factors()[ITEM][items] @ weights.T / len(single) ** 0.5
    assert_close(explain(a_point_estimate(model), as_expected, items, features=features), rated)


def test_an_ordinal_likelihood_is_not_explained():
    posterior = EXAMPLES["ordinal samples"](a_model())
    assert not posterior.explainable
    with pytest.raises(InputError, match="cannot explain an ordinal likelihood; train with the Gaussian one"):
        explain(posterior, ratings_of(1, 8), torch.tensor([0]))


def test_only_one_user_of_a_model_with_any_sign_is_explained():
    items = torch.arange(3)
    with pytest.raises(InputError, match=r"ratings to explain must be of one user \(got 2 users\)"):
        explain(a_point_estimate(a_model()), ratings_of(2, 8), items)
    with pytest.raises(InputError, match="cannot explain a non-negative model"):
        explain(a_point_estimate(a_model(nonnegative=True)), ratings_of(1, 8), items)
    with pytest.raises(InputError, match=r"ratings must be of the model's 8 items \(got 9 items\)"):
        explain(a_point_estimate(a_model()), ratings_of(1, 9), items)


def test_implicit_features_of_other_ratings_are_refused():
    blocks = {"implicit": implicit_features(ratings_of(6, 8, seed=7), "users")}
    posterior = a_point_estimate(a_model(user_features=blocks))
    single, others = ratings_of(1, 8), ratings_of(1, 8, seed=5)
    assert single.items.tolist() != others.items.tolist()
    with pytest.raises(InputError, match="implicit features must be those of the ratings to explain"):
        explain(posterior, single, torch.arange(3), features={"implicit": implicit_features(others, "users")})


@pytest.mark.parametrize("item", [-1, 8])
def test_items_that_are_not_in_the_model_are_not_explained(item):
    with pytest.raises(InputError, match=rf"item index must be in 0 … 7 \(got {item}\)"):
        explain(a_point_estimate(a_model()), ratings_of(1, 8), torch.tensor([item]))
