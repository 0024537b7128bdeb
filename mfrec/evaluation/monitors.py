"""Monitored metrics: the number by which training stops early, keeps its best epoch, and is tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, unknown
from mfrec.evaluation.metrics import METRICS, evaluate_splits
from mfrec.evaluation.ranking import require_relevant
from mfrec.evaluation.ranking_metrics import RANKING_METRICS, ranking_metrics, relevance_threshold
from mfrec.inference.top_k import top_k
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.sums import ordered_mean


@dataclass(frozen=True)
class Monitor:
    """A metric of `METRICS` on the validation set.

    Attributes:
        name: the metric, such as "rmse" or "ndcg@10".
        label: the metric in tables and charts, such as "RMSE" or "NDCG@10".
        higher_is_better: whether a higher value is better.
        format: the format specification of values in tables.
        ranks_items: whether all items are ranked.
    """

    name: str
    label: str
    higher_is_better: bool
    format: str
    ranks_items: ClassVar[bool] = False

    def is_better(self, value: float, best: float) -> bool:
        """Whether a value improves on the best so far; NaN never does."""
        return value > best if self.higher_is_better else value < best

    def value(
        self, model: MatrixFactorization, train: Ratings, held_out: Ratings, measured: Mapping[str, float]
    ) -> float:
        """The metric of a model on held-out ratings.

        Args:
            train: the training ratings, whose items a ranking monitor does not recommend to their users again.
            held_out: the ratings to measure on.
            measured: what `evaluate` returned for these ratings.
        """
        return measured[self.name]


@dataclass(frozen=True)
class RankingMonitor(Monitor):
    """A metric of `RANKING_METRICS` on the validation set, its mean over users with relevant items.

    Attributes:
        metric: a name in `RANKING_METRICS`.
        n: the length of the lists.
    """

    metric: str = "ndcg"
    n: int = 10
    ranks_items: ClassVar[bool] = True

    @torch.no_grad()
    def value(
        self, model: MatrixFactorization, train: Ratings, held_out: Ratings, measured: Mapping[str, float]
    ) -> float:
        """See `Monitor.value`; items rated three quarters up the rating range, or higher, are relevant.

        Raises:
            InputError: no held-out rating is relevant, or the model has no finite rating range.
        """
        low, high = model.rating_range.tolist()
        threshold = relevance_threshold((low, high))
        is_relevant = held_out.values >= threshold
        if not held_out.any(bool(is_relevant.any())):
            require_relevant(held_out, threshold)
        # Users without relevant items would not enter the mean: they are not ranked.
        users = held_out.users[is_relevant].unique()
        values = users.new_empty(0, dtype=torch.float64)
        if len(users):
            recommended, _ = top_k(model, users, self.n, train)
            values = ranking_metrics(recommended, users, held_out, threshold, n=self.n)[self.metric]
        return float(ordered_mean(held_out.gathered(values)))


def monitor(name: str) -> Monitor:
    """The monitored metric of this name: one of `METRICS`, or one of `RANKING_METRICS` with a length of lists.

    Error metrics cost nothing extra: validation measures them anyway.  A ranking metric ranks all items for each user
    with relevant validation ratings, after every epoch, in time proportional to users × items × rank.  With a twentieth
    of ML-1M for validation, 3,706 items are ranked for 5,187 users.  At rank 128 on two cores, this takes 0.1 s for
    lists of 10 and 0.8 s for lists of 100; RMSE takes 0.003 s.

    Raises:
        InputError: there is no such metric, or the lists have no positive length.

    Examples:
        >>> monitor("mae").label, monitor("ndcg@10").label, monitor("ndcg@10").higher_is_better
        ('MAE', 'NDCG@10', True)
        >>> monitor("rsme")
        Traceback (most recent call last):
        ...
        mfrec.errors.InputError: unknown metric to monitor 'rsme'; did you mean 'rmse'?
    """
    if name in METRICS:
        metric = METRICS[name]
        return Monitor(name, metric.label, metric.higher_is_better, metric.format)
    ranking, _, length = name.partition("@")
    is_number = length.isascii() and length.isdecimal() and len(length) < 10
    if ranking in RANKING_METRICS and is_number:
        n = int(length)
        if n < 1:
            raise InputError(f"the lists of {ranking}@N must have at least 1 item (got {name})")
        label = f"{RANKING_METRICS[ranking].label}@{n}"
        return RankingMonitor(f"{ranking}@{n}", label, True, ".4f", ranking, n)
    n_shown = length if is_number else "10"
    raise unknown("metric to monitor", name, [*METRICS, *(f"{ranking}@{n_shown}" for ranking in RANKING_METRICS)])


def evaluate_monitored(
    model: MatrixFactorization,
    objective: Objective,
    splits: Mapping[str, Ratings],
    train: Ratings,
    monitored: Monitor,
    predictive: MatrixFactorization | None = None,
) -> dict[str, dict[str, float]]:
    """`evaluate_splits`, with the monitored metric of the split "valid" if there is one.

    Args:
        train: the training ratings, see `Monitor.value`.
        predictive: the model that predicts held-out ratings, by default `model`.

    Raises:
        InputError: the monitored metric cannot be computed.
    """
    predictive = model if predictive is None else predictive
    measured = evaluate_splits(model, objective, splits, predictive)
    if "valid" in measured and monitored.name not in measured["valid"]:
        measured["valid"][monitored.name] = monitored.value(predictive, train, splits["valid"], measured["valid"])
    return measured
