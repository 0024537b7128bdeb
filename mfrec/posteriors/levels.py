"""Levels: the distinct values that ratings take, such as 1 … 5, and their probabilities if ratings are normal."""

from __future__ import annotations

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.model.level_likelihood import normal_cdf

# Ratings with more distinct values than this are continuous, without probabilities of levels.
MAX_LEVELS = 50
# Ratings whose values are compared at a time, and rows of probabilities computed at a time.
VALUE_BLOCK, ROW_BLOCK = 2**20, 2**16


def rating_levels(ratings: Ratings) -> Tensor | None:
    """(K,) the distinct values of the ratings, ascending; None for more than `MAX_LEVELS` or without ratings."""
    levels = ratings.values[:0]
    for block in ratings.values.split(VALUE_BLOCK):
        levels = torch.cat([levels, block[~torch.isin(block, levels)].unique()])
        if len(levels) > MAX_LEVELS:
            return None
    return levels.sort().values if len(levels) else None


def nearest_levels(values: Tensor, levels: Tensor) -> Tensor:
    """(n,) the position of the level nearest to each value; of two equally near levels, the lower.

    Args:
        values: (n,) ratings.
        levels: (K,) ascending.
    """
    levels = levels.to(values.device).double()
    return torch.bucketize(values.double(), (levels[1:] + levels[:-1]) / 2)


def level_shares(ratings: Ratings, levels: Tensor) -> Tensor:
    """(K,) the share of the ratings at each level, in float64; a value between levels counts as the nearest."""
    counts = torch.bincount(nearest_levels(ratings.values, levels), minlength=len(levels))
    return counts.double() / len(ratings)


def level_names(levels: Tensor) -> list[str]:
    """The shortest names of levels that differ, such as "1" or "0.5"."""
    numbers: list[float] = levels.tolist()
    names = [f"{number:g}" for number in numbers]
    return names if len(set(names)) == len(names) else [repr(number) for number in numbers]


def normal_level_probabilities(means: Tensor, std: Tensor, levels: Tensor) -> Tensor:
    """(n, K) Φ((c_k − mean)/std) − Φ((c_{k−1} − mean)/std) in float64, with c_k midway between levels k and k + 1.

    c_0 = −∞ and c_K = ∞, so that each row adds up to 1.

    Args:
        means, std: (n,) each.
        levels: (K,) ascending.
    """
    levels = levels.to(means.device).double()
    ends = levels.new_tensor([torch.inf])
    cuts = torch.cat([-ends, (levels[1:] + levels[:-1]) / 2, ends])
    blocks = zip(means.double().split(ROW_BLOCK), std.double().split(ROW_BLOCK), strict=True)
    return torch.cat([_normal_block(cuts, mean, scale) for mean, scale in blocks])


def _normal_block(cuts: Tensor, means: Tensor, std: Tensor) -> Tensor:
    z = (cuts - means[:, None]) / std[:, None]
    lower, upper = z[:, :-1], z[:, 1:]
    # Bins above the mean are mirrored: Φ is near 1 there, and a difference would cancel.
    above = lower > 0
    lower, upper = torch.where(above, -upper, lower), torch.where(above, -lower, upper)
    return normal_cdf(upper) - normal_cdf(lower)
