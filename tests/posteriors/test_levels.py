"""Levels of ratings, and their probabilities by every kind of posterior."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from posterior_examples import EXAMPLES, a_model
from torch.testing import assert_close

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.posteriors.levels import (
    MAX_LEVELS,
    VALUE_BLOCK,
    level_names,
    level_shares,
    nearest_levels,
    normal_level_probabilities,
    rating_levels,
)

STARS = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
USERS, ITEMS = torch.cartesian_prod(torch.arange(6), torch.arange(8)).T


def ratings_with(values: torch.Tensor) -> Ratings:
    """One user's ratings with these values."""
    return Ratings(torch.zeros(len(values), dtype=torch.long), torch.arange(len(values)), values)


def test_levels_are_the_distinct_values_in_ascending_order():
    assert rating_levels(ratings_with(torch.tensor([4.0, 0.5, 4.0, 1.5]))).tolist() == [0.5, 1.5, 4.0]


def test_levels_of_many_ratings_include_a_value_that_only_the_last_has():
    values = torch.arange(VALUE_BLOCK + 7) % 3
    values[-1] = 9
    assert rating_levels(ratings_with(values.double())).tolist() == [0, 1, 2, 9]


@pytest.mark.parametrize(("n", "has_levels"), [(0, False), (1, True), (MAX_LEVELS, True), (MAX_LEVELS + 1, False)])
def test_ratings_have_1_to_50_levels_or_none(n, has_levels):
    levels = rating_levels(ratings_with(torch.arange(n).double()))
    assert (levels is not None) == has_levels


def test_a_value_between_levels_counts_as_the_nearest():
    values = torch.tensor([-9.0, 1.49, 1.5, 1.51, 3.0, 99.0])
    assert nearest_levels(values, STARS).tolist() == [0, 0, 0, 1, 2, 4]
    assert level_shares(ratings_with(values), STARS).tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 0, 1 / 6])


def test_names_of_levels_are_short_and_differ():
    assert level_names(torch.tensor([0.5, 1.0, 10.0])) == ["0.5", "1", "10"]
    assert len(set(level_names(torch.tensor([1_000_001.0, 1_000_002.0])))) == 2


def test_normal_probabilities_are_areas_between_midpoints():
    def cdf(z: float) -> float:
        return math.erfc(-z / math.sqrt(2)) / 2

    probabilities = normal_level_probabilities(torch.tensor([2.2]), torch.tensor([0.8]), torch.tensor([1.0, 2.0, 4.0]))
    first, second = cdf((1.5 - 2.2) / 0.8), cdf((3.0 - 2.2) / 0.8)
    assert_close(probabilities, torch.tensor([[first, second - first, 1 - second]]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("mean", [-30.0, 36.0])
def test_probabilities_far_from_the_mean_are_positive_and_mirror_each_other(mean):
    std = torch.ones(1, dtype=torch.float64)
    row = normal_level_probabilities(torch.tensor([mean], dtype=torch.float64), std, STARS)[0]
    mirrored = normal_level_probabilities(torch.tensor([6 - mean], dtype=torch.float64), std, STARS)[0].flip(0)
    assert float(row.min()) > 0
    assert_close(row, mirrored, rtol=1e-12, atol=0)


@given(
    mean=st.floats(-50, 50),
    std=st.floats(1e-3, 50),
    levels=st.lists(st.floats(-20, 20), min_size=1, max_size=12, unique=True),
)
def test_probabilities_of_levels_are_a_distribution(mean, std, levels):
    levels = torch.tensor(sorted(levels), dtype=torch.float64)
    probabilities = normal_level_probabilities(torch.tensor([mean]), torch.tensor([std]), levels)
    assert probabilities.shape == (1, len(levels))
    assert float(probabilities.min()) >= 0
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_posterior_with_standard_deviations_has_probabilities(kind):
    posterior = EXAMPLES[kind](a_model())
    levels = getattr(posterior, "levels", STARS)
    if not posterior.has_std:
        with pytest.raises(InputError, match="has no standard deviations and no samples"):
            posterior.level_probabilities(USERS, ITEMS, levels)
        return
    probabilities = posterior.level_probabilities(USERS, ITEMS, levels)
    assert probabilities.dtype == torch.float64
    assert_close(probabilities.sum(1), torch.ones(len(USERS)).double())
    if not hasattr(posterior, "levels"):
        means, std = posterior.mean_model().predict(USERS, ITEMS), posterior.std(USERS, ITEMS)
        below = torch.special.ndtr((2.5 - means) / std)
        assert_close(probabilities[:, :2].sum(1), below.double())
