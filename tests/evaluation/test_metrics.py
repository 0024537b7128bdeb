"""Metrics of a model, the coverage of its intervals, and the table that a plugin can extend."""

import math

import pytest
import torch

from mfrec.data.ratings import Ratings
from mfrec.evaluation.metrics import (
    COVERAGE,
    METRICS,
    Metric,
    coverage,
    evaluate,
    evaluate_splits,
    mae,
    rmse,
    with_coverage,
)
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.posteriors.mean_field import MeanFieldPosterior
from mfrec.posteriors.point_estimate import PointEstimate
from mfrec.sums import BLOCK


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


def test_metrics_of_many_float32_errors_are_those_in_float64():
    predictions, stars = torch.randn(2, 3 * BLOCK + 5, generator=torch.Generator().manual_seed(0))
    errors = predictions.double() - stars.double()
    assert rmse(predictions, stars) == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-7)
    assert mae(predictions, stars) == pytest.approx(float(errors.abs().mean()), rel=1e-7)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_metrics_change_neither_predictions_nor_ratings(metric):
    predictions, stars = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    metric.function(predictions, stars)
    assert (predictions.tolist(), stars.tolist()) == ([1.0, 2.0], [3.0, 5.0])


def test_metrics_without_ratings_are_nan():
    assert all(math.isnan(metric.function(torch.zeros(0), torch.zeros(0))) for metric in METRICS.values())


def test_metrics_clip_predictions_and_the_cost_does_not(ratings):
    model = MatrixFactorization.from_ratings(ratings, 2, offset="none", rating_range=(1.0, 5.0))
    with torch.no_grad():
        model.item_bias.weight.fill_(9.0)
    measured = evaluate(model, ratings, Objective())
    assert measured["rmse"] == pytest.approx(rmse(torch.full_like(ratings.values, 5.0), ratings.values))
    assert measured["mae"] == pytest.approx(mae(torch.full_like(ratings.values, 5.0), ratings.values))
    assert measured["cost"] == pytest.approx(float(Objective().cost(model, ratings)))


def test_a_metric_added_to_the_table_is_evaluated(ratings, monkeypatch):
    def within_half(predictions: torch.Tensor, ratings: torch.Tensor) -> float:
        return float(((predictions - ratings).abs() <= 0.5).double().mean())

    monkeypatch.setitem(METRICS, "within_half", Metric("within ½", within_half, True, ".1%"))
    model = MatrixFactorization.from_ratings(ratings, 2, rating_range=(1.0, 5.0))
    measured = evaluate(model, ratings, Objective())
    assert list(measured) == ["rmse", "mae", "within_half", "cost"]
    assert measured["within_half"] == within_half(model.predict_observed(ratings), ratings.values) > 0


def test_only_the_cost_of_the_training_set_includes_the_penalty(ratings):
    model = MatrixFactorization.from_ratings(ratings, 2)
    measured = evaluate_splits(model, Objective(5.0), {"train": ratings, "test": ratings})
    penalty = float(Objective(5.0).penalty(model, ratings).detach())
    assert penalty > 0
    assert measured["train"]["cost"] - measured["test"]["cost"] == pytest.approx(penalty)
    assert measured["train"]["rmse"] == measured["test"]["rmse"]


@pytest.mark.parametrize("entity", ["users", "items"])
def test_factors_that_are_not_finite_show_in_the_cost_of_held_out_ratings(ratings, entity):
    model = MatrixFactorization.from_ratings(ratings, 2)
    with torch.no_grad():
        getattr(model, entity).factors.weight[int(getattr(ratings, entity)[0])] = torch.inf
    assert not math.isfinite(evaluate(model, ratings, Objective())["cost"])


def mean_field(ratings: Ratings, alpha: float) -> MeanFieldPosterior:
    """A posterior with small variances, so that nearly all uncertainty is the noise α^−½."""
    model = MatrixFactorization.from_ratings(ratings, 2, rating_range=(1.0, 5.0))
    factors = model.augmented_factors()
    variances = [torch.full_like(rows, 1e-12).detach() for rows in factors]
    precision = [torch.ones_like(rows[:1]).detach() for rows in factors]
    return MeanFieldPosterior(model, variances, precision, alpha, [torch.ones_like(rows[:, :1]) for rows in variances])


@pytest.mark.parametrize("noise_std", [0.01, 0.5, 1.0, 100.0])
def test_coverage_is_the_share_of_errors_within_1_645_standard_deviations(ratings, noise_std):
    posterior = mean_field(ratings, noise_std**-2)
    errors = (posterior.model.predict_observed(ratings, clip=True) - ratings.values).abs()
    assert coverage(posterior, ratings) == pytest.approx(float((errors <= 1.64485 * noise_std).double().mean()))


def test_coverage_is_reported_for_held_out_splits_of_posteriors_with_a_std_only(ratings):
    splits, measured = {"train": ratings, "test": ratings}, {"train": {"rmse": 1.0}, "test": {"rmse": 2.0}}
    posterior = mean_field(ratings, 1.0)
    reported = with_coverage(measured, splits, posterior)
    assert reported == {"train": {"rmse": 1.0}, "test": {"rmse": 2.0, COVERAGE: coverage(posterior, ratings)}}
    assert with_coverage(measured, splits, PointEstimate(posterior.model, Objective())) == measured
