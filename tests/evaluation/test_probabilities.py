"""Scores, calibration and coverage of probabilities of ratings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.evaluation.probabilities import (
    INTERVALS,
    N_GROUPS,
    evaluate_probabilities,
    level_calibration,
    pit_share,
    report_of_levels,
)
from mfrec.model.factorization import MatrixFactorization
from mfrec.posteriors.mean_field import MeanFieldPosterior

LEVELS = torch.tensor([1.0, 2.0, 3.0])


def tensor(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def drawn(probabilities: Tensor, seed: int = 1) -> Tensor:
    """(n,) a level's position drawn from each row."""
    return torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(seed))[:, 0]


def random_probabilities(n: int, k: int, seed: int = 0) -> Tensor:
    scores = 1.5 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scores.softmax(1)


def test_scores_of_two_ratings_by_hand():
    report = report_of_levels(tensor([0.2, 0.5, 0.3], [0.6, 0.3, 0.1]), torch.tensor([2.0, 3.0]), LEVELS)
    assert report.n_ratings == 2
    assert report.log_likelihood == pytest.approx((math.log(0.5) + math.log(0.1)) / 2)
    assert report.ranked_probability_score == pytest.approx((0.2**2 + 0.3**2 + 0.6**2 + 0.9**2) / 2)
    first = report.levels[0]
    assert (first.level, first.predicted, first.observed) == (1.0, pytest.approx(0.4), 0.0)
    # u is uniform on [0.2, 0.7] and on [0.9, 1].
    assert report.coverage[0.5] == pytest.approx((0.45 / 0.5 + 0) / 2)
    assert report.coverage[0.9] == pytest.approx((1 + 0.05 / 0.1) / 2)
    assert report.pit == pytest.approx([0, 0, 0.1, 0.1, 0.1, 0.1, 0.1, 0, 0, 0.5])


def test_a_certain_and_right_forecast_has_the_best_scores():
    report = report_of_levels(torch.eye(3).double(), LEVELS, LEVELS)
    assert (report.log_likelihood, report.ranked_probability_score) == (0, 0)
    assert all(level.error == level.chance == 0 for level in report.levels)


def test_a_rating_without_probability_has_the_log_likelihood_of_minus_infinity():
    report = report_of_levels(tensor([0.0, 0.0, 1.0]), torch.tensor([2.0]), LEVELS)
    assert report.log_likelihood == -math.inf
    assert report.ranked_probability_score == 1
    assert report.coverage[0.95] == 0


def test_a_rating_between_levels_is_counted_and_scored_as_the_nearest():
    probabilities = tensor([0.2, 0.5, 0.3])
    between = report_of_levels(probabilities, torch.tensor([2.2]), LEVELS)
    exact = report_of_levels(probabilities, torch.tensor([2.0]), LEVELS)
    assert (between.n_between, exact.n_between) == (1, 0)
    assert between.log_likelihood == exact.log_likelihood


def test_scores_match_plain_loops():
    probabilities = random_probabilities(50, 3)
    observed = drawn(probabilities)
    report = report_of_levels(probabilities, LEVELS[observed], LEVELS)
    rps = log_likelihood = 0.0
    for row, y in zip(probabilities.tolist(), observed.tolist(), strict=True):
        log_likelihood += math.log(row[y])
        rps += sum((sum(row[: k + 1]) - (y <= k)) ** 2 for k in range(3))
    assert report.log_likelihood == pytest.approx(log_likelihood / 50)
    assert report.ranked_probability_score == pytest.approx(rps / 50)


def test_shares_of_the_pit_are_the_means_over_randomized_values():
    probabilities = random_probabilities(300, 3)
    observed = drawn(probabilities)
    report = report_of_levels(probabilities, LEVELS[observed], LEVELS)
    v = np.random.default_rng(0).random((2000, 300))
    cumulative, index = probabilities.cumsum(1).numpy(), observed.numpy()[:, None]
    at = np.take_along_axis(probabilities.numpy(), index, 1)[:, 0]
    u = np.take_along_axis(cumulative, index, 1)[:, 0] - at + v * at
    for c in INTERVALS:
        assert report.coverage[c] == pytest.approx((abs(u - 0.5) <= c / 2).mean(), abs=2e-3)
    assert report.pit == pytest.approx((np.histogram(u, N_GROUPS, (0, 1))[0] / u.size).tolist(), abs=2e-3)


@pytest.mark.parametrize("n_levels", [2, 5])
def test_a_planted_model_is_calibrated(n_levels):
    n, levels = 40_000, torch.arange(n_levels).double()
    probabilities = random_probabilities(n, n_levels)
    report = report_of_levels(probabilities, levels[drawn(probabilities)], levels)
    for c, inside in report.coverage.items():
        assert inside == pytest.approx(c, abs=4 * math.sqrt(c * (1 - c) / n))
    assert report.pit == pytest.approx([1 / N_GROUPS] * N_GROUPS, abs=4 * math.sqrt(0.09 / n))
    for level in report.levels:
        assert level.predicted == pytest.approx(level.observed, abs=4 * math.sqrt(0.25 / n))
        assert 0.3 * level.chance < level.error < 2 * level.chance


def test_the_error_by_chance_is_the_mean_error_of_calibrated_probabilities():
    probabilities = random_probabilities(500, 2)[:, 0]
    generator = torch.Generator().manual_seed(0)
    errors = [
        level_calibration(1.0, probabilities, torch.rand(500, generator=generator) < probabilities).error
        for _ in range(400)
    ]
    chance = level_calibration(1.0, probabilities, probabilities > 0.5).chance
    assert chance == pytest.approx(sum(errors) / 400, rel=0.05)


def test_a_model_that_is_too_sure_is_not_calibrated():
    true = random_probabilities(20_000, 3)
    claimed = true.square() / true.square().sum(1, keepdim=True)
    values = LEVELS[drawn(true)]
    right, wrong = (report_of_levels(p, values, LEVELS) for p in (true, claimed))
    assert wrong.log_likelihood < right.log_likelihood
    assert wrong.ranked_probability_score > right.ranked_probability_score
    assert wrong.coverage[0.8] < 0.78
    assert all(level.error > 3 * level.chance for level in wrong.levels)


def test_equal_probabilities_are_in_one_group():
    calibration = level_calibration(4.0, torch.full((100,), 0.3), torch.arange(100) < 40)
    assert calibration.groups == [(pytest.approx(0.3), pytest.approx(0.4))]
    assert calibration.error == pytest.approx(0.1)
    assert calibration.chance == pytest.approx(math.sqrt(2 / math.pi * 0.21 / 100), rel=1e-6)


def test_groups_have_about_equal_sizes_and_ascending_probabilities():
    probabilities = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = level_calibration(1.0, probabilities, probabilities > 0.5).groups
    assert len(groups) == N_GROUPS
    assert groups == sorted(groups)
    assert [share for _, share in groups][0::9] == [0, 1]


@given(
    weights=st.lists(
        st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda row: sum(row) > 1e-3), min_size=1, max_size=20
    ),
    chosen=st.data(),
)
def test_reports_of_any_probabilities_are_consistent(weights, chosen):
    probabilities = torch.tensor(weights, dtype=torch.float64)
    probabilities = probabilities / probabilities.sum(1, keepdim=True)
    values = tensor(*(chosen.draw(st.sampled_from([1.0, 2.0, 3.0])) for _ in weights))
    report = report_of_levels(probabilities, values, LEVELS)
    assert report.log_likelihood <= 1e-12
    assert -1e-12 <= report.ranked_probability_score <= 2 + 1e-12
    assert sum(level.predicted for level in report.levels) == pytest.approx(1)
    assert sum(level.observed for level in report.levels) == pytest.approx(1)
    assert all(abs(x.predicted - x.observed) <= x.error + 1e-12 for x in report.levels)
    assert sum(report.pit) == pytest.approx(1)
    assert list(report.coverage.values()) == sorted(report.coverage.values())


def test_a_pit_value_at_an_end_is_in_the_outermost_share():
    below, nothing = tensor(0.0, 1.0), torch.zeros(2).double()
    assert pit_share(below, nothing, 0.0, 0.1) == pit_share(below, nothing, 0.9, 1.0) == 0.5


def noise_only(ratings: Ratings, noise_std: float) -> MeanFieldPosterior:
    """A posterior whose uncertainty is nearly all noise."""
    model = MatrixFactorization.from_ratings(ratings, 2, rating_range=(1.0, 5.0))
    factors = model.augmented_factors()
    variances = [torch.full_like(rows, 1e-12).detach() for rows in factors]
    ones = [torch.ones_like(rows[:1]).detach() for rows in factors]
    scales = [torch.ones_like(rows[:, :1]) for rows in variances]
    return MeanFieldPosterior(model, variances, ones, noise_std**-2, scales)


def test_continuous_ratings_have_the_coverage_of_normal_intervals_and_no_levels():
    values = 3 + 0.7 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ratings = Ratings.from_dense(values)
    posterior = noise_only(ratings, 0.7)
    report = evaluate_probabilities(posterior, ratings, None)
    errors = (posterior.model.predict_observed(ratings) - ratings.values).abs()
    assert report.coverage[0.9] == pytest.approx(float((errors <= 1.644854 * 0.7).double().mean()))
    assert report.pit == pytest.approx([0.1] * 10, abs=0.03)
    assert (report.log_likelihood, report.ranked_probability_score, report.levels) == (None, None, [])


def test_rounded_ratings_have_the_coverage_that_they_had_before_rounding():
    values = 3 + 0.7 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = torch.linspace(0, 6, 25, dtype=torch.float64)
    exact = Ratings.from_dense(values)
    rounded = Ratings.from_dense(levels[torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)])
    posterior = noise_only(exact, 0.7)
    before, after = (evaluate_probabilities(posterior, *each) for each in ((exact, None), (rounded, levels)))
    assert list(after.coverage.values()) == pytest.approx(list(before.coverage.values()), abs=0.01)
