"""Figures: which ones each kind of posterior has, and that they show the numbers they claim to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mfrec.data.ratings import Ratings
from mfrec.data.splits import random_split
from mfrec.data.synthetic import synthetic
from mfrec.evaluation import figures
from mfrec.evaluation.figures import draw_figures
from mfrec.evaluation.metrics import rmse
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.posteriors.point_estimate import PointEstimate
from mfrec.posteriors.samples import PosteriorSamples

ALWAYS = ["predicted_against_actual", "calibration", "error_by_popularity", "spectrum"]


@pytest.fixture(scope="module")
def splits() -> tuple[Ratings, Ratings]:
    """Training and test ratings of 80 users × 60 items, integers."""
    generator = torch.Generator().manual_seed(0)
    ratings = synthetic(80, 60, 1600, generator=generator, rounded=True).ratings
    return ratings.split(random_split(ratings, 0.2, generator))


@pytest.fixture(scope="module")
def model(splits) -> MatrixFactorization:
    generator = torch.Generator().manual_seed(1)
    return MatrixFactorization.from_ratings(splits[0], 3, rating_range=(1.0, 5.0), init="uniform", generator=generator)


def samples_of(model: MatrixFactorization, n: int) -> PosteriorSamples:
    posterior = PosteriorSamples(model, max(n, 1))
    for alpha in range(1, n + 1):
        ones = [torch.ones(size, 1) for size in (model.n_users, model.n_items)]
        posterior.add(float(alpha), ones, [(torch.ones(5), torch.zeros(5))] * 2)
        with torch.no_grad():
            model.user_factors.weight.mul_(0.9)
    return posterior


def test_a_point_estimate_has_no_figures_of_uncertainty(model, splits):
    assert list(draw_figures(PointEstimate(model, Objective()), *splits, "test")) == ALWAYS


def test_samples_have_their_coverage_and_their_trace(splits):
    model = MatrixFactorization.from_ratings(splits[0], 3, rating_range=(1.0, 5.0), init="uniform")
    drawn = draw_figures(samples_of(model, 4), *splits, "valid")
    assert list(drawn) == [*ALWAYS, "coverage", "reliability", "trace"]
    single, mean, noise = (line.get_ydata() for line in drawn["trace"].axes[0].get_lines())
    assert noise.tolist() == [alpha**-0.5 for alpha in (1.0, 2.0, 3.0, 4.0)]
    assert single[0] == mean[0] != mean[-1]
    titles = {figure.axes[0].get_title().partition(": ")[2] for name, figure in drawn.items() if name != "spectrum"}
    assert titles == {"validation set"}


def test_a_sampler_in_its_burn_in_has_the_figures_of_its_model(model, splits):
    assert list(draw_figures(samples_of(model, 0), *splits, "test")) == ALWAYS


def test_the_reliability_has_a_curve_for_each_rating_and_bars_whose_mean_height_is_1(splits):
    train, test = splits
    model = MatrixFactorization.from_ratings(train, 3, rating_range=(1.0, 5.0), init="uniform")
    left, right = draw_figures(samples_of(model, 3), train, test, "test")["reliability"].axes
    curves, (diagonal,) = left.get_lines()[:-1], left.get_lines()[-1:]
    assert [line.get_label() for line in curves] == ["1", "2", "3", "4", "5"]
    assert diagonal.get_xdata().tolist() == diagonal.get_ydata().tolist()
    for line in curves:
        assert np.all(np.diff(line.get_xdata()) > 0)
        assert 0 <= min(line.get_ydata()) <= max(line.get_ydata()) <= 1
    assert right.patches[0].get_data().values.mean() == pytest.approx(1)


def test_continuous_ratings_have_no_reliability(splits):
    train, test = (
        Ratings(r.users, r.items, r.values + torch.arange(len(r)) / 1e4, r.n_users, r.n_items) for r in splits
    )
    model = MatrixFactorization.from_ratings(train, 3, rating_range=(1.0, 5.0), init="uniform")
    assert "reliability" not in draw_figures(samples_of(model, 2), train, test, "test")


def test_the_calibration_s_points_are_means_of_all_ratings(model, splits):
    _, test = splits
    axes = figures.calibration(model.predict_observed(test, clip=True), test, "test set").axes[0]
    predicted, actual = axes.get_lines()[0].get_data()
    assert np.all(np.diff(predicted) >= 0)
    sizes = [len(group) for group in torch.arange(len(test)).tensor_split(len(actual))]
    assert np.average(actual, weights=sizes) == pytest.approx(float(test.values.double().mean()))


def test_the_bars_by_popularity_are_the_groups_rmse(model, splits):
    train, test = splits
    predictions = model.predict_observed(test, clip=True)
    axes = figures.error_by_popularity(predictions, test, train, "test set").axes[0]
    counts = train.item_counts[test.items]
    many = (counts >= 20) & (counts < 100)
    assert bool(many.any())
    assert axes.patches[3].get_height() == pytest.approx(rmse(predictions[many], test.values[many]))
    assert axes.get_ylabel() == "RMSE"


def test_the_spectrum_is_that_of_the_predictions(model):
    axes = figures.spectrum(model).axes[0]
    product = model.factors(0).double() @ model.factors(1).double().mT
    assert axes.get_lines()[0].get_ydata() == pytest.approx(torch.linalg.svdvals(product)[:3].tolist(), rel=1e-5)
