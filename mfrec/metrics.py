"""Accuracy: functions of tensors, and the numbers reported of a model on a part of the ratings."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mfrec.model import MatrixFactorization
from mfrec.objective import Objective
from mfrec.posterior import NINETY, Posterior
from mfrec.ratings import Ratings
from mfrec.sparse import sampled_dot


def rmse(predictions: Tensor, ratings: Tensor) -> float:
    """√(mean of squared errors), in stars; NaN of nothing."""
    return float((predictions - ratings).double().square().mean().sqrt())


def mae(predictions: Tensor, ratings: Tensor) -> float:
    """Mean absolute error, in stars; NaN of nothing."""
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
    """Share of the ratings within their 90 % interval, `NINETY` deviations either side of the prediction."""
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
