"""Errors by group: by user, item, rating, popularity of the item, and for new users and items."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, unknown
from mfrec.evaluation.metrics import METRICS

# The lowest number of training ratings in each group of popularity.
POPULARITY = (0, 1, 5, 20, 100)
COLD_START = ("none", "new user", "new item", "new user and item")

# Takes the ratings to group and the training ratings; returns the groups' labels, and for each rating the position of
# its group among them, (n_ratings,).
Grouping = Callable[[Ratings, Ratings], tuple[Sequence[object] | np.ndarray, Tensor]]


@torch.no_grad()
def errors_by(predictions: Tensor, ratings: Ratings, train: Ratings, by: str) -> pd.DataFrame:
    """Every metric of `METRICS` for each group of the ratings.

    Each rating is in one group, so that Σ n_ratings · rmse² over groups is the sum of all squared errors.

        by            groups, in the order of the rows
        "user"        the index of each user who has a rating here
        "item"        the index of each item that has a rating here
        "rating"      each value of a rating
        "popularity"  the item's number of training ratings: "0", "1–4", "5–19", "20–99", "100+"
        "cold_start"  who has no training ratings: "none", "new user", "new item", "new user and item"

    The last two have a row for every group; metrics of an empty group are NaN.

    Args:
        predictions: (n_ratings,) in the order of the ratings, such as `model.predict_observed(ratings, clip=True)`.
        ratings: the held-out ratings to group.
        train: the training ratings, for popularity and cold starts.
        by: a name in `GROUPINGS`.

    Returns:
        a frame with the columns `by`, "n_ratings", and the names in `METRICS`.

    Raises:
        InputError: the grouping is unknown, or predictions and ratings differ in number.
    """
    if by not in GROUPINGS:
        raise unknown("grouping of errors", by, GROUPINGS)
    if len(predictions) != len(ratings):
        raise InputError(f"there must be one prediction per rating (got {len(predictions):,} for {len(ratings):,})")
    labels, group = GROUPINGS[by](ratings, train)
    # On the CPU, whose sums have one order.
    group, predictions, values = group.cpu(), predictions.cpu(), ratings.values.cpu()
    order, counts = group.argsort(stable=True), torch.bincount(group, minlength=len(labels))
    sizes = counts.tolist()
    groups = list(zip(predictions[order].split(sizes), values[order].split(sizes), strict=True))
    columns = {
        name: [metric.function(*pair) if len(pair[0]) else float("nan") for pair in groups]
        for name, metric in METRICS.items()
    }
    return pd.DataFrame({by: labels, "n_ratings": counts.numpy(), **columns})


def _by_value(keys: Tensor) -> tuple[np.ndarray, Tensor]:
    labels, group = keys.cpu().unique(return_inverse=True)
    return labels.numpy(), group


def _by_popularity(ratings: Ratings, train: Ratings) -> tuple[Sequence[str], Tensor]:
    labels = [f"{low}" if high == low + 1 else f"{low}–{high - 1}" for low, high in itertools.pairwise(POPULARITY)]
    counts = train.item_counts[ratings.items]
    starts = torch.tensor(POPULARITY[1:], device=counts.device)
    return [*labels, f"{POPULARITY[-1]}+"], torch.bucketize(counts, starts, right=True)


def _by_cold_start(ratings: Ratings, train: Ratings) -> tuple[Sequence[str], Tensor]:
    new_user, new_item = train.user_counts[ratings.users] == 0, train.item_counts[ratings.items] == 0
    return COLD_START, new_user + 2 * new_item


GROUPINGS: dict[str, Grouping] = {
    "user": lambda ratings, _: _by_value(ratings.users),
    "item": lambda ratings, _: _by_value(ratings.items),
    "rating": lambda ratings, _: _by_value(ratings.values),
    "popularity": _by_popularity,
    "cold_start": _by_cold_start,
}
