"""Accuracy: functions of tensors, numbers reported of a model on a part of the ratings, and where its errors are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, unknown
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.posteriors.posterior import NINETY, Posterior
from mfrec.sparse import sampled_dot

# The least training ratings of the items in each group of popularity, the first for items without any.
POPULARITY = (0, 1, 5, 20, 100)


def rmse(predictions: Tensor, ratings: Tensor) -> float:
    """√(mean of squared errors), in stars; NaN of nothing.

    Examples:
        >>> rmse(torch.tensor([4.0, 2.0]), torch.tensor([5.0, 9.0]))  # √((1² + 7²) / 2)
        5.0
    """
    return float((predictions - ratings).double().square().mean().sqrt())


def mae(predictions: Tensor, ratings: Tensor) -> float:
    """Mean absolute error, in stars; NaN of nothing.

    Examples:
        >>> mae(torch.tensor([4.0, 2.0]), torch.tensor([5.0, 9.0]))  # (1 + 7) / 2
        4.0
    """
    return float((predictions - ratings).double().abs().mean())


@torch.no_grad()
def evaluate(model: MatrixFactorization, ratings: Ratings, objective: Objective) -> dict[str, float]:
    """{"rmse", "mae", "cost"} of a model on these ratings.

    RMSE and MAE are of predictions kept on the rating scale; the cost, which is what training lowers, is not.  Give
    `Objective(loss=…)` without l2 for the cost of held-out ratings: J of a part that was not trained on has no penalty.
    """
    dots = sampled_dot(ratings.by_user, *model.tables())
    losses, _ = objective.losses(dots, model.targets(ratings), ratings)
    cost = losses.sum() + objective.penalty(model, ratings)
    predictions = model.clip(model.add_offset(dots, ratings.items))
    return {"rmse": rmse(predictions, ratings.values), "mae": mae(predictions, ratings.values), "cost": float(cost)}


def evaluate_parts(
    model: MatrixFactorization, objective: Objective, parts: Mapping[str, Ratings]
) -> dict[str, dict[str, float]]:
    """`evaluate` of each part by name; the penalty counts in the cost of the part called "train" alone."""
    held_out = Objective(loss=objective.loss)
    return {name: evaluate(model, part, objective if name == "train" else held_out) for name, part in parts.items()}


@torch.no_grad()
def coverage(model: MatrixFactorization, posterior: Posterior, ratings: Ratings) -> float:
    """Share of the ratings, NaN of none, within their 90 % interval: `NINETY` deviations either side of each."""
    errors = (model.predict_observed(ratings, clip=True) - ratings.values).abs()
    within = errors <= NINETY * posterior.deviation(ratings.users, ratings.items)
    return float(within.double().mean())


def with_coverage(
    measured: Mapping[str, dict[str, float]],
    parts: Mapping[str, Ratings],
    model: MatrixFactorization,
    posterior: Posterior | None,
) -> dict[str, dict[str, float]]:
    """The measures of each part, with the coverage of 90 % intervals for those held out where there is a posterior."""
    if posterior is None:
        return dict(measured)
    return {
        name: values if name == "train" else {**values, "coverage_90": coverage(model, posterior, parts[name])}
        for name, values in measured.items()
    }


@torch.no_grad()
def errors_by(predictions: Tensor, ratings: Ratings, train: Ratings, by: str) -> pd.DataFrame:
    """RMSE and MAE of the predictions of a part of the ratings, group by group.

    Every rating is in one group, so that Σ n_ratings · rmse² is the part's sum of squared errors, and Σ n_ratings · mae
    its sum of absolute ones.

        by            groups, in the order of the rows
        "user"        each user's index; those without a rating in the part are left out, as are items
        "item"        each item's index
        "rating"      each rating there is
        "popularity"  how many training ratings the item has: "0", "1–4", "5–19", "20–99", "100+"
        "warmth"      what has no training rating: "warm" neither, "cold user", "cold item", "both cold"

    The last two have a row for every group, with errors NaN where it has no ratings.

    Args:
        predictions: (n_ratings,) in the order of the ratings, such as `model.predict_observed(ratings, clip=True)`.
        ratings: the part whose errors are told.
        train: the training ratings, whose counts tell what is popular and what is cold.
        by: a name in `GROUPS`.

    Returns:
        a frame with the columns `by`, "n_ratings", "rmse" and "mae", the last two in stars.

    Raises:
        InputError: there is no such grouping, or predictions and ratings differ in number.
    """
    if by not in GROUPS:
        raise unknown("grouping of errors", by, GROUPS)
    if len(predictions) != len(ratings):
        raise InputError(f"{len(predictions):,} predictions for {len(ratings):,} ratings; give one of each")
    labels, group = GROUPS[by](ratings, train)
    # On the CPU, whose sums have one order.
    errors, group = (predictions - ratings.values).cpu().double(), group.cpu()

    def sums(weights: Tensor | None = None) -> Tensor:
        return torch.bincount(group, weights, minlength=len(labels))

    counts = sums()
    columns = {"n_ratings": counts, "rmse": (sums(errors.square()) / counts).sqrt(), "mae": sums(errors.abs()) / counts}
    return pd.DataFrame({by: labels, **{name: column.numpy() for name, column in columns.items()}})


def _each(keys: Tensor) -> tuple[np.ndarray, Tensor]:
    labels, group = keys.cpu().unique(return_inverse=True)
    return labels.numpy(), group


def _by_popularity(ratings: Ratings, train: Ratings) -> tuple[list[str], Tensor]:
    labels = [f"{low}" if high == low + 1 else f"{low}–{high - 1}" for low, high in itertools.pairwise(POPULARITY)]
    counts = train.item_counts[ratings.items]
    starts = torch.tensor(POPULARITY[1:], device=counts.device)
    return [*labels, f"{POPULARITY[-1]}+"], torch.bucketize(counts, starts, right=True)


def _by_warmth(ratings: Ratings, train: Ratings) -> tuple[list[str], Tensor]:
    cold_user, cold_item = train.user_counts[ratings.users] == 0, train.item_counts[ratings.items] == 0
    return ["warm", "cold user", "cold item", "both cold"], cold_user + 2 * cold_item


# What `errors_by` can tell errors apart by: (the part, the training ratings) → the groups' labels, and the position
# among them of each rating's group, (n_ratings,).
GROUPS: dict[str, Callable[[Ratings, Ratings], tuple[Sequence[object] | np.ndarray, Tensor]]] = {
    "user": lambda ratings, _: _each(ratings.users),
    "item": lambda ratings, _: _each(ratings.items),
    "rating": lambda ratings, _: _each(ratings.values),
    "popularity": _by_popularity,
    "warmth": _by_warmth,
}
