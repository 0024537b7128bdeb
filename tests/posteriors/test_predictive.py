"""The predictive model: users without ratings are average, and recent errors move the biases of the others."""

from __future__ import annotations

import pickle

import pytest
import torch
from conftest import features_of
from posterior_examples import EXAMPLES, OBJECTIVE, a_model, ratings_of
from torch import Tensor
from torch.testing import assert_close

from mfrec.data.features import Features, implicit_features
from mfrec.data.ratings import Ratings
from mfrec.data.sessions import Sessions
from mfrec.errors import OptionError
from mfrec.model.entity import USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.ordinal import OrdinalFactorization
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.point_estimate import PointEstimate
from mfrec.posteriors.predictive import predictive_model, recent_biases

ITEMS = torch.arange(8)
UNRATED = 1


@pytest.fixture
def train() -> Ratings:
    """Ratings of six users at random times, some at once; user 1 has none."""
    plain = ratings_of(6, 8)
    times = torch.randint(12, (len(plain),), generator=torch.Generator().manual_seed(0))
    return Ratings(plain.users, plain.items, plain.values, 6, 8, timestamps=times, weights=plain.weights)


@pytest.fixture(params=EXAMPLES)
def posterior(request: pytest.FixtureRequest) -> Posterior:
    return EXAMPLES[request.param](a_model())


def scores(model: MatrixFactorization) -> Tensor:
    """(n_users, n_items) θ̃ · x̃ of all pairs."""
    users, items = (factors.detach() for factors in model.augmented_factors())
    return users @ items.mT


def side_features() -> Features:
    """Features of users 1 to 5; user 0 has none."""
    side = torch.randn(6, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    side[0] = 0
    return features_of(side)


def test_the_predictive_model_is_the_mean_model_if_every_user_has_ratings(train):
    model = a_model()
    everyone = Ratings.from_dense(torch.ones(6, 8, dtype=torch.float64))
    assert predictive_model(PointEstimate(model, OBJECTIVE), everyone) is model


def test_users_without_ratings_are_the_mean_of_the_others_who_stay_as_they_are(posterior, train):
    mean, model = posterior.mean_model(), predictive_model(posterior, train)
    rated = train.user_counts > 0
    assert_close(scores(model)[UNRATED], scores(mean)[rated].mean(0))
    assert torch.equal(scores(model)[rated], scores(mean)[rated])
    assert isinstance(model, OrdinalFactorization) == isinstance(mean, OrdinalFactorization)
    users = torch.zeros_like(ITEMS)
    assert torch.equal(model.predict(users, ITEMS, clip=True), mean.predict(users, ITEMS, clip=True))


def test_implicit_features_are_part_of_the_average(train):
    model = a_model(user_features={"implicit": implicit_features(train, "users").to(dtype=torch.float64)})
    predicted = predictive_model(PointEstimate(model, OBJECTIVE), train)
    assert_close(scores(predicted)[UNRATED], scores(model)[train.user_counts > 0].mean(0))


def test_features_of_another_kind_stay_and_users_who_have_none_are_average(train):
    blocks = {
        "implicit": implicit_features(train, "users").to(dtype=torch.float64),
        "side_information": side_features(),
    }
    model, rated = a_model(user_features=blocks), train.user_counts > 0
    mean = scores(model)[rated].mean(0)
    items = model.augmented_factors()[1].detach()
    side = model.terms(USER)[2].product(model.weights(model.terms(USER)[2])).detach() @ items.mT
    predicted = scores(predictive_model(PointEstimate(model, OBJECTIVE), train))
    assert_close(predicted[UNRATED], mean - side[rated].mean(0) + side[UNRATED])
    without_users = train.select(train.users != 0)
    mean = scores(model)[without_users.user_counts > 0].mean(0)
    assert_close(scores(predictive_model(PointEstimate(model, OBJECTIVE), without_users))[0], mean)


def test_users_with_features_keep_their_rows_in_the_mean_of_samples(train):
    posterior = EXAMPLES["samples"](a_model(user_features={"side_information": side_features()}))
    predicted = predictive_model(posterior, train)
    assert torch.equal(scores(predicted)[UNRATED], scores(posterior.mean_model())[UNRATED])
    without_users = train.select(train.users != 0)
    predicted = scores(predictive_model(posterior, without_users))
    assert_close(predicted[0], scores(posterior.mean_model())[without_users.user_counts > 0].mean(0))


@pytest.mark.parametrize("half_life", [1, 4])
def test_the_recent_bias_is_that_of_the_plain_loops(train, half_life):
    model = a_model()
    biases = recent_biases(model, train, half_life)
    errors, times = train.values - model.predict_observed(train), train.timestamps.tolist()
    for user in range(6):
        places = [n for n in range(len(train)) if int(train.users[n]) == user]
        latest_first = sorted(places, key=lambda n: (times[n], n), reverse=True)
        weights = [float(train.weights[n]) * 2 ** (-m / half_life) for m, n in enumerate(latest_first)]
        total = sum(weight * float(errors[n]) for weight, n in zip(weights, latest_first, strict=True))
        assert float(biases[user]) == pytest.approx(total / (sum(weights) + half_life))
    assert float(biases[UNRATED]) == 0


@pytest.mark.parametrize("kind", [name for name in EXAMPLES if name != "ordinal samples"])
def test_recent_biases_are_added_to_the_predictions_of_their_users(kind, train):
    posterior = EXAMPLES[kind](a_model())
    without, model = (predictive_model(posterior, train, half_life) for half_life in (0, 3))
    shift = recent_biases(posterior.mean_model(), train, 3)
    assert float(shift.abs().min()) == 0 < float(shift.abs().max())
    assert_close(scores(model), scores(without) + shift[:, None])


def test_effects_of_sessions_stay_and_are_not_counted_twice(train):
    model = a_model(sessions=Sessions(train, gaps=(2,)))
    model.sessions.bias.weight.data.fill_(0.5)
    shift = recent_biases(model, train, 3)
    predicted = predictive_model(PointEstimate(model, OBJECTIVE), train, 3).predict_observed(train)
    assert_close(predicted, model.predict_observed(train) + shift[train.users.long()])


def test_recent_biases_need_biases_and_timestamps(train):
    with pytest.raises(OptionError, match="needs a model with biases; turn biases on"):
        recent_biases(a_model(biases=False), train, 3)
    with pytest.raises(OptionError, match="needs timestamps, which these ratings lack"):
        recent_biases(a_model(), ratings_of(6, 8), 3)


def test_a_posterior_that_predicts_by_another_model_has_its_probabilities_and_can_be_pickled(posterior, train):
    model = predictive_model(posterior, train)
    changed = pickle.loads(pickle.dumps(posterior.predicting_by(model)))
    assert torch.equal(scores(changed.mean_model()), scores(model))
    assert torch.equal(scores(posterior.mean_model())[0], scores(model)[0])
    if posterior.has_std:
        levels = torch.arange(1.0, 6.0)
        users = torch.full_like(ITEMS, UNRATED)
        before, after = (each.level_probabilities(users, ITEMS, levels) for each in (posterior, changed))
        assert_close(after.sum(1), torch.ones(8, dtype=torch.float64))
        assert float((before - after).abs().max()) > 1e-3
        assert torch.equal(*(each.level_probabilities(users * 0, ITEMS, levels) for each in (posterior, changed)))
