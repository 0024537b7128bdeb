"""Synthetic data: ratings from factors and biases that are drawn, so that the best possible error is known."""

from __future__ import annotations

import torch
from torch import Tensor

from mfrec.data.dataset import Dataset
from mfrec.data.ids import id_index
from mfrec.data.ratings import Ratings
from mfrec.data.tables import item_table, user_table
from mfrec.errors import InputError

BIAS_STD = 0.35
PRODUCT_STD = 0.5


def synthetic(
    n_users: int,
    n_items: int,
    n_ratings: int,
    rank: int = 8,
    noise_std: float = 0.3,
    *,
    generator: torch.Generator,
    rounded: bool = False,
) -> Dataset:
    """Ratings from planted factors and biases: y = 3 + b_u + b_i + θ·x + noise, clipped to 1–5.

    The planted part has standard deviation 0.7 (0.35 for each bias, 0.5 for the product), so that clipping is rare.
    Users' activity is log-normal and items' popularity follows Zipf's law; each has at least one rating.

    Args:
        n_ratings: the exact number of distinct (user, item) pairs.
        rank: the number of planted factors.
        noise_std: the standard deviation of the noise, in stars.
        rounded: round the ratings to whole stars.

    Raises:
        InputError: the pairs are too few for a rating of each user and item, or more than there are.

    Examples:
        >>> synthetic(n_users=30, n_items=20, n_ratings=200, generator=torch.Generator().manual_seed(0))
        Dataset('synthetic', Ratings(200 of 30 users × 20 items, cpu), rating range 1–5)
    """
    low, high = max(n_users, n_items), n_users * n_items
    if not 0 < low <= n_ratings <= high:
        raise InputError(
            f"n_ratings must be in {low:,} … {high:,} for {n_users:,} users × {n_items:,} items (got {n_ratings:,})"
        )
    users, items = _skewed_pairs(n_users, n_items, n_ratings, generator)

    def normal(std: float, n: int) -> Tensor:
        return std * torch.randn(n, generator=generator)

    values = 3 + normal(BIAS_STD, n_users)[users] + normal(BIAS_STD, n_items)[items]
    values += normal(noise_std, n_ratings)
    for _ in range(rank):  # one factor at a time needs no n_ratings × rank array
        factor_std = (PRODUCT_STD**2 / rank) ** 0.25
        values += normal(factor_std, n_users)[users] * normal(factor_std, n_items)[items]
    values = values.clamp(1, 5)
    ratings = Ratings(users, items, values.round() if rounded else values, n_users, n_items)
    user_ids, item_ids = id_index(range(1, n_users + 1)), id_index(range(1, n_items + 1))
    tables = user_table(None, "user", user_ids), item_table(None, "item", item_ids)
    return Dataset("synthetic", ratings, user_ids, item_ids, *tables, (1.0, 5.0))


def _skewed_pairs(n_users: int, n_items: int, n_ratings: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Distinct pairs drawn by activity × popularity, after one pair for each user and item."""
    n_cover = max(n_users, n_items)
    cover_users, cover_items = (torch.randperm(n_cover, generator=generator) % n for n in (n_users, n_items))
    activity = torch.randn(n_users, generator=generator, dtype=torch.float64).exp().cumsum(0)
    places = torch.randperm(n_items, generator=generator)
    popularity = (1 / (places + 10).double()).cumsum(0)  # shifted, so that not every user rates the first few

    keys = cover_users * n_items + cover_items
    while len(keys) < n_ratings:
        missing = n_ratings - len(keys)
        n_draws = 2 * missing + 1024
        drawn = _draw(activity, n_draws, generator) * n_items + _draw(popularity, n_draws, generator)
        new = torch.unique(drawn)
        new = new[~torch.isin(new, keys, assume_unique=True)]
        if 8 * len(new) < missing:  # the likely pairs are used up: allow all others
            free = torch.ones(n_users * n_items, dtype=torch.bool)
            free[keys] = False
            new = free.nonzero()[:, 0]
        keys = torch.cat([keys, new[torch.randperm(len(new), generator=generator)[:missing]]])
    return keys // n_items, keys % n_items


def _draw(cumulative: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """(n,) positions drawn with replacement, given the cumulative sum of their weights."""
    lots = torch.rand(n, generator=generator, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, lots).clamp(max=len(cumulative) - 1)
