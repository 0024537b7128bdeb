"""Frames of pairs: probabilities of ratings, and the times of pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from mfrec.data.dataset import Dataset
from mfrec.data.sessions import Sessions
from mfrec.errors import InputError
from mfrec.inference.predict import predict_frame
from mfrec.inference.trained_model import TrainedModel
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.levels import level_shares
from mfrec.posteriors.mean_field import MeanFieldPosterior
from mfrec.posteriors.point_estimate import PointEstimate

LEVELS = torch.tensor([0.5, 1.0, 2.0, 3.0])


def a_dataset(values: list[float]) -> Dataset:
    """Users 1 … 12 and items 1 … 9, a rating for two in three pairs, one day apart, with these values in turn."""
    rows = [(u, i) for u in range(1, 13) for i in range(1, 10) if (u + i) % 3]
    frame = pd.DataFrame(rows, columns=["user", "item"]).assign(timestamp=range(0, 86_400 * len(rows), 86_400))
    return Dataset.from_frame(frame.assign(rating=np.resize(values, len(rows))), rating_range=(0.5, 3))


def trained_on(dataset: Dataset, posterior: Posterior) -> TrainedModel:
    """A trained model without held-out ratings."""
    labels = torch.zeros(len(dataset.ratings), dtype=torch.uint8)
    return TrainedModel("vb", posterior, Objective(), dataset, labels)


def a_model(dataset: Dataset, sessions: Sessions | None = None) -> MatrixFactorization:
    return MatrixFactorization.from_ratings(
        dataset.ratings, 2, rating_range=dataset.rating_range, init="uniform", sessions=sessions
    )


def a_mean_field(model: MatrixFactorization) -> MeanFieldPosterior:
    free, sizes = model.free_columns(), (model.n_users, model.n_items)
    variances = [0.02 * columns.expand(n, -1) for n, columns in zip(sizes, free, strict=True)]
    ones = [torch.ones_like(columns) for columns in free]
    return MeanFieldPosterior(model, variances, ones, 2.0, [torch.ones(n, 1) for n in sizes])


@pytest.fixture(scope="module")
def bayesian() -> TrainedModel:
    dataset = a_dataset(LEVELS.tolist())
    return trained_on(dataset, a_mean_field(a_model(dataset)))


def test_probabilities_are_those_of_the_posterior(bayesian):
    pairs = pd.DataFrame({"user": [1, 2], "item": [3, 4]})
    frame = predict_frame(bayesian, pairs, probabilities=True)
    assert frame.columns.tolist() == ["user", "item", "prediction", "std", "p_0.5", "p_1", "p_2", "p_3"]
    expected = bayesian.posterior.level_probabilities(torch.tensor([0, 1]), torch.tensor([2, 3]), LEVELS)
    assert frame.filter(like="p_").to_numpy() == pytest.approx(expected.numpy())
    without = predict_frame(bayesian, pairs)
    assert frame[without.columns].equals(without)


def test_unknown_ids_have_wider_probabilities_and_unknown_pairs_those_of_the_training_shares(bayesian):
    pairs = pd.DataFrame({"user": [1, 99, 1, 99], "item": [3, 3, 77, 77]})
    probabilities = predict_frame(bayesian, pairs, probabilities=True).filter(like="p_").to_numpy()
    assert probabilities.sum(1) == pytest.approx(np.ones(4))
    assert probabilities[3] == pytest.approx(level_shares(bayesian.train, LEVELS).numpy())
    assert len(np.unique(probabilities, axis=0)) == 4


def test_new_users_have_the_levels_of_the_training(bayesian):
    new = bayesian.fold_in_users({1: 3.0, 2: 3.0})
    frame = new.predict_frame(pd.DataFrame({"user": ["you"], "item": [4]}), probabilities=True)
    assert frame.filter(like="p_").columns.tolist() == ["p_0.5", "p_1", "p_2", "p_3"]


def test_continuous_ratings_have_no_probabilities():
    dataset = a_dataset(np.linspace(0.5, 3, 60).tolist())
    trained = trained_on(dataset, a_mean_field(a_model(dataset)))
    with pytest.raises(InputError, match=r"^probabilities needs ratings with at most 50 distinct values"):
        predict_frame(trained, pd.DataFrame({"user": [1], "item": [1]}), probabilities=True)


@pytest.fixture(scope="module")
def with_sessions() -> TrainedModel:
    """A point estimate whose sessions, one for each rating, have the biases 0.01, 0.02, …"""
    dataset = a_dataset(LEVELS.tolist())
    model = a_model(dataset, Sessions(dataset.ratings, gaps=(60,)))
    assert model.sessions is not None
    with torch.no_grad():
        model.user_factors.weight.mul_(0.1)
        model.sessions.bias.weight.copy_(0.01 * torch.arange(1, len(dataset.ratings) + 1)[:, None])
    return trained_on(dataset, PointEstimate(model, Objective()))


@pytest.mark.parametrize("kind", [int, float, str])
def test_times_place_pairs_in_the_sessions_of_their_users(with_sessions, kind):
    ratings = with_sessions.dataset.ratings
    first = int(ratings.timestamps[ratings.users == 0].min())
    pairs = pd.DataFrame({"user": [1, 1, 1], "item": [3, 3, 3], "timestamp": [first, first + 60, first + 61]})
    pairs["timestamp"] = pairs["timestamp"].astype(kind)
    timeless = predict_frame(with_sessions, pairs.drop(columns="timestamp"))["prediction"]
    effects = (predict_frame(with_sessions, pairs)["prediction"] - timeless).tolist()
    assert effects == pytest.approx([0.01, 0.01, 0], abs=1e-6)
    assert predict_frame(with_sessions, pairs, timestamp="seconds")["prediction"].equals(timeless)


def test_an_unknown_user_has_no_sessions(with_sessions):
    pairs = pd.DataFrame({"user": [99], "item": [3], "timestamp": [0]})
    at_time, timeless = (predict_frame(with_sessions, frame) for frame in (pairs, pairs.drop(columns="timestamp")))
    assert at_time["prediction"].equals(timeless["prediction"])


@pytest.mark.parametrize("time", [np.nan, "noon", 1.5])
def test_a_time_that_is_not_whole_seconds_is_refused_if_there_are_sessions(with_sessions, bayesian, time):
    pairs = pd.DataFrame({"user": [1], "item": [3], "timestamp": [time]})
    with pytest.raises(InputError, match="timestamps must be whole seconds since 1970"):
        predict_frame(with_sessions, pairs)
    assert predict_frame(bayesian, pairs)["timestamp"].equals(pairs["timestamp"])
