"""Synthetic data: exact size, no user or item without a rating, and the planted rank, noise and popularity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from data_examples import assert_refused, assert_same, generator, through_a_file
from torch.testing import assert_close

from mfrec.data.synthetic import synthetic


@pytest.mark.parametrize("shape", [(30, 20, 30), (30, 20, 200), (20, 30, 599), (20, 30, 600), (1, 1, 1)])
def test_there_are_exactly_the_ratings_asked_for_and_each_user_and_item_has_one(shape: tuple[int, int, int]) -> None:
    dataset = synthetic(*shape, generator=generator())
    ratings = dataset.ratings
    assert (ratings.n_users, ratings.n_items, ratings.n_ratings) == shape
    assert int(ratings.user_counts.min()) >= 1
    assert int(ratings.item_counts.min()) >= 1
    assert 1 <= float(ratings.values.min()) <= float(ratings.values.max()) <= 5
    assert_same(dataset, through_a_file(dataset))


def test_the_same_seed_gives_the_same_ratings_and_another_seed_others() -> None:
    assert_same(synthetic(30, 20, 200, generator=generator()), synthetic(30, 20, 200, generator=generator()))
    different = synthetic(30, 20, 200, generator=generator(1))
    assert not torch.equal(different.ratings.values, synthetic(30, 20, 200, generator=generator()).ratings.values)


def test_ratings_have_the_planted_rank_noise_and_standard_deviation() -> None:
    def centred(**options: Any) -> torch.Tensor:
        ratings = synthetic(60, 50, 3000, generator=generator(), **options).ratings
        Y = ratings.values.double().view(60, 50)
        return Y - Y.mean(0) - Y.mean(1, keepdim=True) + Y.mean()

    assert int((torch.linalg.svdvals(centred(rank=2, noise_std=0)) > 1).sum()) <= 4  # two, and what clipping adds
    assert_close(centred(rank=0, noise_std=0.3).std().item(), 0.3, atol=0.02, rtol=0)
    values = synthetic(2000, 1000, 100_000, noise_std=0, generator=generator()).ratings.values
    assert_close(values.std().item(), 0.7, atol=0.05, rtol=0)
    assert float(((values == 1) | (values == 5)).float().mean()) < 0.02


def test_activity_and_popularity_are_skewed() -> None:
    ratings = synthetic(1000, 500, 50_000, generator=generator()).ratings
    for counts in (ratings.user_counts, ratings.item_counts):
        most = counts.sort(descending=True).values[: len(counts) // 10].sum()
        assert 0.25 < float(most / len(ratings)) < 0.75


def test_ratings_are_whole_only_if_rounded() -> None:
    assert set(synthetic(30, 20, 300, generator=generator(), rounded=True).ratings.values.tolist()) <= {1, 2, 3, 4, 5}
    assert len(synthetic(30, 20, 300, generator=generator()).ratings.values.unique()) > 200


@pytest.mark.parametrize("n", [29, 601])
def test_an_impossible_number_of_ratings_is_refused(n: int) -> None:
    message = f"n_ratings must be in 30 … 600 for 30 users × 20 items (got {n})"
    assert_refused(message, 30, 20, n, generator=generator(), call=synthetic)
