"""Accuracy figures and the baselines they are held against."""

import math

import pytest
import torch

from mfrec.baselines import baselines, biases_only
from mfrec.metrics import evaluate, evaluate_parts, mae, rmse
from mfrec.model import MatrixFactorization
from mfrec.objective import Objective
from mfrec.ratings import Ratings


@pytest.fixture
def ratings() -> Ratings:
    generator = torch.Generator().manual_seed(0)
    observed = torch.rand(13, 11, generator=generator) < 0.5
    stars = torch.randint(1, 6, (13, 11), generator=generator).double()
    return Ratings.from_dense(stars, observed)


def test_rmse_and_mae_of_known_errors():
    predictions, stars = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 4.0, 2.0])
    assert rmse(predictions, stars) == pytest.approx(math.sqrt(5 / 3))
    assert mae(predictions, stars) == pytest.approx(1.0)


def test_errors_are_of_clipped_predictions_and_the_cost_is_not(ratings):
    model = MatrixFactorization.from_ratings(ratings, 2, offset="none", scale=(1.0, 5.0))
    with torch.no_grad():
        model.item_bias.weight.fill_(9.0)
    measured = evaluate(model, ratings, Objective())
    assert measured["rmse"] == pytest.approx(rmse(torch.full_like(ratings.values, 5.0), ratings.values))
    assert measured["mae"] == pytest.approx(mae(torch.full_like(ratings.values, 5.0), ratings.values))
    assert measured["cost"] == pytest.approx(float(Objective().cost(model, ratings)))


def test_the_penalty_counts_in_the_cost_of_the_training_part_alone(ratings):
    model = MatrixFactorization.from_ratings(ratings, 2)
    measured = evaluate_parts(model, Objective(5.0), {"train": ratings, "test": ratings})
    penalty = float(Objective(5.0).penalty(model, ratings).detach())
    assert measured["train"]["cost"] - measured["test"]["cost"] == pytest.approx(penalty)


def test_the_mean_baselines_predict_means(ratings):
    models = baselines(ratings, (1.0, 5.0))
    mean = float(ratings.values.mean())
    assert models["global mean"].predict_observed(ratings).unique().tolist() == [pytest.approx(mean)]
    items = models["item mean"].predict_observed(ratings)
    assert len(items.unique()) > 5
    assert all(len(items[ratings.items == i].unique()) <= 1 for i in range(13))


def test_the_biases_end_where_the_gradient_of_their_cost_is_zero(ratings):
    model = biases_only(ratings, (1.0, 5.0), l2=3.0, sweeps=200)
    for gradient in Objective(3.0).gradients(model, ratings).values():
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)
