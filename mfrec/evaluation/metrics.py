"""Accuracy of predicted ratings: the table of metrics, and models measured by it.

The table is read by everything that measures: training, evaluation, logs, tables, cross-validation and tuning.  A new
metric is a function and a row, here or in a plugin:

    METRICS["max_error"] = Metric("max error", lambda predictions, ratings: float((predictions - ratings).abs().max()))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.posteriors.base import Z_90, Posterior
from mfrec.sums import ordered_mean, ordered_sum

# The name under which `with_coverage` reports the share of ratings inside their 90 % intervals.
COVERAGE = "coverage_90"


@dataclass(frozen=True)
class Metric:
    """A row of `METRICS`.

    Attributes:
        label: the metric in tables and charts, such as "RMSE".
        function: takes predictions and ratings, (n,) each, and returns the metric; NaN if n is 0.  Predictions are
            clipped to the rating range.
        higher_is_better: whether a model with a higher value is better.
        format: the format specification of values in tables.
    """

    label: str
    function: Callable[[Tensor, Tensor], float]
    higher_is_better: bool = False
    format: str = ".4f"

    def measure(self, predictions: Tensor, ratings: Ratings) -> float:
        """The metric of predictions, (n_ratings,), over the ratings of all processes if they are partitioned."""
        return self.function(ratings.gathered(predictions), ratings.gathered(ratings.values))


@dataclass(frozen=True, kw_only=True)
class MeanMetric(Metric):
    """A metric that follows from a mean over the ratings, so that processes exchange a sum instead of predictions.

    Attributes:
        terms: takes predictions and ratings, (n,) each, and returns the terms of the mean, (n,).
        of_mean: takes the mean, () in float64, and returns the metric, ().
    """

    terms: Callable[[Tensor, Tensor], Tensor]
    of_mean: Callable[[Tensor], Tensor]

    def measure(self, predictions: Tensor, ratings: Ratings) -> float:
        return float(self.of_mean(ratings.mean(self.terms(predictions, ratings.values))))


def rmse(predictions: Tensor, ratings: Tensor) -> float:
    """√(mean of squared errors), in units of the ratings; NaN without ratings.

    Examples:
        >>> rmse(torch.tensor([4.0, 2.0]), torch.tensor([5.0, 9.0]))  # √((1² + 7²) / 2)
        5.0
    """
    return float(ordered_mean(_squared_errors(predictions, ratings), torch.float64).sqrt())


def mae(predictions: Tensor, ratings: Tensor) -> float:
    """Mean absolute error, in units of the ratings; NaN without ratings.

    Examples:
        >>> mae(torch.tensor([4.0, 2.0]), torch.tensor([5.0, 9.0]))  # (1 + 7) / 2
        4.0
    """
    return float(ordered_mean(_absolute_errors(predictions, ratings), torch.float64))


def _squared_errors(predictions: Tensor, ratings: Tensor) -> Tensor:
    return (predictions - ratings).square_()


def _absolute_errors(predictions: Tensor, ratings: Tensor) -> Tensor:
    return (predictions - ratings).abs_()


METRICS: dict[str, Metric] = {
    "rmse": MeanMetric("RMSE", rmse, terms=_squared_errors, of_mean=torch.sqrt),
    "mae": MeanMetric("MAE", mae, terms=_absolute_errors, of_mean=torch.clone),
}


@torch.no_grad()
def evaluate(model: MatrixFactorization, ratings: Ratings, objective: Objective) -> dict[str, float]:
    """Every metric of `METRICS`, and "cost", of a model on these ratings.

    Metrics use predictions clipped to the rating range; the cost uses unclipped predictions.  For held-out ratings,
    whose cost has no penalty, pass `Objective(l2=0, loss=…)`.
    """
    predictions = model.predict_observed(ratings)
    loss = ratings.total(ordered_sum(objective.losses(predictions, ratings.values, ratings)[0]))
    cost = loss + objective.penalty(model, ratings)
    predictions = model.clip(predictions)
    measured = {name: metric.measure(predictions, ratings) for name, metric in METRICS.items()}
    return {**measured, "cost": float(cost)}


def evaluate_splits(
    model: MatrixFactorization,
    objective: Objective,
    splits: Mapping[str, Ratings],
    predictive: MatrixFactorization | None = None,
) -> dict[str, dict[str, float]]:
    """`evaluate` for each split by name; only the cost of the split "train" includes the penalty.

    Args:
        predictive: the model that predicts the other splits, see `mfrec.posteriors.predictive`; by default `model`.
    """
    held_out = Objective(loss=objective.loss)
    predictive = model if predictive is None else predictive
    return {
        name: evaluate(model, split, objective) if name == "train" else evaluate(predictive, split, held_out)
        for name, split in splits.items()
    }


@torch.no_grad()
def coverage(posterior: Posterior, ratings: Ratings) -> float:
    """The share of ratings inside their 90 % intervals, prediction ± `Z_90` · std; NaN without ratings."""
    predictions = posterior.mean_model().predict_observed(ratings, clip=True)
    std = posterior.std(ratings.users, ratings.items, timestamps=ratings.timestamps)
    inside = (predictions - ratings.values).abs() <= Z_90 * std
    return float(inside.double().mean())


def with_coverage(
    measured: Mapping[str, Mapping[str, float]], splits: Mapping[str, Ratings], posterior: Posterior
) -> dict[str, dict[str, float]]:
    """The metrics of each split, with the coverage of 90 % intervals on held-out splits if the posterior has a std."""
    return {
        name: {**values, COVERAGE: coverage(posterior, splits[name])}
        if posterior.has_std and name != "train"
        else dict(values)
        for name, values in measured.items()
    }
