"""Splits: which ratings are held out for the test and for validation.

A splitting function returns a mask over the ratings, True for a rating that is held out: the two sets are disjoint
and complete by construction.  Labels, (n_ratings,) TRAIN, VALID or TEST, assign each rating to one of three sets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.sparse import stable_order

TRAIN, VALID, TEST = 0, 1, 2
SPLIT_NAMES = {"train": TRAIN, "valid": VALID, "test": TEST}


def split_by_labels(ratings: Ratings, labels: Tensor) -> dict[str, Ratings]:
    """The ratings of each split by name, given (n_ratings,) labels; splits without ratings are left out."""
    labels = labels.to(ratings.device)
    return {
        name: ratings.select(labels == label) for name, label in SPLIT_NAMES.items() if bool((labels == label).any())
    }


def random_split(ratings: Ratings, fraction: float, generator: torch.Generator) -> Tensor:
    """Mask of round(fraction · n_ratings) ratings drawn without replacement.

    Raises:
        InputError: the fraction is not in [0, 1).
    """
    return random_mask(len(ratings), fraction, generator)


def random_mask(n: int, fraction: float, generator: torch.Generator) -> Tensor:
    """(n,) mask of round(fraction · n) places drawn without replacement.

    Raises:
        InputError: the fraction is not in [0, 1).
    """
    held = torch.zeros(n, dtype=torch.bool)
    held[torch.randperm(n, generator=generator)[: _share(n, fraction)]] = True
    return held


def per_user_split(ratings: Ratings, fraction: float, generator: torch.Generator) -> Tensor:
    """Mask of round(fraction · n) of each user's n ratings, drawn without replacement.

    Raises:
        InputError: the fraction is not in [0, 1).
    """
    _share(0, fraction)
    shuffled = torch.rand(len(ratings), dtype=torch.float64, generator=generator)
    return _last_of_each_user(ratings, shuffled, (ratings.pattern.counts.cpu() * fraction).round())


def per_user_time_split(ratings: Ratings, fraction: float, generator: torch.Generator) -> Tensor:
    """Mask of the newest round(fraction · n) of each user's n ratings; ties are broken at random.

    Raises:
        InputError: the ratings have no timestamps, or the fraction is not in [0, 1).
    """
    _share(0, fraction)
    position = _positions_in_time(ratings, generator)
    return _last_of_each_user(ratings, position, (ratings.pattern.counts.cpu() * fraction).round())


def time_split(ratings: Ratings, fraction: float, generator: torch.Generator) -> Tensor:
    """Mask of the newest round(fraction · n_ratings) ratings; ties are broken at random.

    Raises:
        InputError: the ratings have no timestamps, or the fraction is not in [0, 1).
    """
    lot = torch.randperm(len(ratings), generator=generator)
    newest = lot[torch.argsort(_timestamps(ratings)[lot], descending=True, stable=True)]
    held = torch.zeros(len(ratings), dtype=torch.bool)
    held[newest[: _share(len(ratings), fraction)]] = True
    return held


def leave_last_out(ratings: Ratings, fraction: float, generator: torch.Generator) -> Tensor:
    """Mask of each user's newest rating; ties are broken at random, and a user's only rating is kept.

    The fraction is ignored.

    Raises:
        InputError: the ratings have no timestamps.
    """
    position = _positions_in_time(ratings, generator)
    return _last_of_each_user(ratings, position, (ratings.pattern.counts.cpu() > 1).double())


def cold_items(ratings: Ratings, fraction: float, generator: torch.Generator) -> Tensor:
    """Mask of all ratings of round(fraction · n) of the n rated items, drawn without replacement.

    Raises:
        InputError: the fraction is not in [0, 1).
    """
    rated = ratings.item_counts.cpu().nonzero()[:, 0]
    cold = torch.zeros(ratings.n_items, dtype=torch.bool)
    cold[rated[torch.randperm(len(rated), generator=generator)[: _share(len(rated), fraction)]]] = True
    return cold[ratings.items.cpu().long()]


def k_folds(ratings: Ratings, k: int, generator: torch.Generator) -> Tensor:
    """(n_ratings,) random fold number 0 … k-1 of each rating; sizes differ by at most one, `folds == f` is a mask.

    Raises:
        InputError: k is below 2 or above the number of ratings.
    """
    if not 2 <= k <= len(ratings):
        raise InputError(f"the number of folds must be in 2 … {len(ratings):,}, the number of ratings (got {k})")
    folds = torch.empty(len(ratings), dtype=torch.int64)
    folds[torch.randperm(len(ratings), generator=generator)] = torch.arange(len(ratings)) % k
    return folds


SPLITS: dict[str, Callable[[Ratings, float, torch.Generator], Tensor]] = {
    "random": random_split,
    "per-user": per_user_split,
    "per-user-time": per_user_time_split,
    "time": time_split,
    "leave-last-out": leave_last_out,
    "cold-items": cold_items,
}


def _share(n: int, fraction: float) -> int:
    if not 0 <= fraction < 1:
        raise InputError(f"the fraction to hold out must be in [0, 1) (got {fraction:g})")
    return round(n * fraction)


def _timestamps(ratings: Ratings) -> Tensor:
    if ratings.timestamps is None:
        raise InputError("this split needs timestamps, which these ratings lack; use random or per-user")
    return ratings.timestamps.cpu()


def _positions_in_time(ratings: Ratings, generator: torch.Generator) -> Tensor:
    """(n_ratings,) the position of each rating in the order of time, from 0; ties are broken at random."""
    lot = torch.randperm(len(ratings), generator=generator)
    position = torch.empty_like(lot)
    position[lot[torch.argsort(_timestamps(ratings)[lot], stable=True)]] = torch.arange(len(ratings))
    return position


def _last_of_each_user(ratings: Ratings, key: Tensor, n_held: Tensor) -> Tensor:
    """Mask of the n_held[j] ratings with the largest keys of each user j."""
    return newer_ratings(ratings, key) < n_held.index_select(0, ratings.users.cpu())


def newer_ratings(ratings: Ratings, key: Tensor) -> Tensor:
    """(n_ratings,) how many ratings of the same user have a larger key, on the CPU; of equal keys, the last is largest.

    Args:
        key: (n_ratings,) numbers to compare, such as timestamps.
    """
    users = ratings.users.cpu()
    by_key = torch.argsort(key.cpu(), stable=True)
    order = by_key.index_select(0, stable_order(users.index_select(0, by_key), ratings.n_users))
    # The order is by user, as the ratings are: its place n belongs to the user of rating n.
    newer = torch.empty(len(order), dtype=torch.long)
    newer[order] = ratings.pattern.crow.cpu()[1:].index_select(0, users) - 1 - torch.arange(len(order))
    return newer
