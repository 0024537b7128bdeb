"""Ranking evaluation: the recommended lists of all users against their held-out ratings.

Lists are ranked over all items that a user may be recommended.  A sample of items can order models differently
(Krichene & Rendle 2020, "On sampled metrics for item recommendation").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError
from mfrec.evaluation.bootstrap import bootstrap_intervals
from mfrec.evaluation.catalogue import catalogue_coverage, novelty
from mfrec.evaluation.ranking_metrics import ranking_metrics
from mfrec.inference.top_k import top_k
from mfrec.model.factorization import MatrixFactorization
from mfrec.sums import ordered_mean


@dataclass(frozen=True, eq=False)
class RankingReport:
    """The result of `evaluate_ranking`.

    Attributes:
        n: the length of the lists.
        threshold: the lowest rating of a relevant item.
        users: (n_users,) the users with relevant items, ascending; means are over them.
        values: (n_users,) float64 for each metric of `RANKING_METRICS`.
        means: each metric's mean over these users.
        intervals: each metric's 95 % bootstrap interval of the mean, (low, high); NaN for a single user.
        n_left_out: the number of users with held-out ratings but no relevant item.
        catalogue_coverage: the share of candidates in at least one list, those of users left out included.
        novelty: the mean over the same lists of their items' mean self-information in bits; see `novelty`.
    """

    n: int
    threshold: float
    users: Tensor
    values: dict[str, Tensor]
    means: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    n_left_out: int
    catalogue_coverage: float
    novelty: float

    @property
    def n_users(self) -> int:
        """The number of users with relevant items."""
        return len(self.users)


def evaluate_ranking(
    model: MatrixFactorization,
    train: Ratings,
    test: Ratings,
    threshold: float,
    n: int = 10,
    *,
    exclude: Ratings | None = None,
    candidates: Tensor | None = None,
    gain: str = "binary",
    resamples: int = 1000,
    generator: torch.Generator | None = None,
) -> RankingReport:
    """The ranking metrics of a model's lists of n items for all users with held-out ratings.

    Args:
        train: the training ratings, for novelty.
        test: the held-out ratings.
        threshold: the lowest rating of a relevant item.
        exclude: ratings whose items are not recommended to their users, such as those of training and validation; by
            default the training ratings.
        candidates: (n_items,) bool, which items may be recommended; by default all.
        gain: the gains of NDCG, a name in `GAINS`.
        resamples: how often to draw the users for the intervals.
        generator: the source of these draws, on the CPU.

    Raises:
        InputError: n is below 1, no held-out rating is relevant, or `ranking_metrics` refuses the gains.

    Examples:
        >>> users, items = torch.tensor([[1.0]]), torch.tensor([[2.0], [5.0], [3.0], [4.0]])
        >>> model = MatrixFactorization.from_augmented_factors(
        ...     users, items, biases=False, offset=None, rating_range=torch.tensor([1.0, 5.0])
        ... )
        >>> train = Ratings(torch.tensor([0]), torch.tensor([1]), torch.tensor([4.0]), n_users=1, n_items=4)
        >>> test = Ratings(torch.tensor([0, 0]), torch.tensor([0, 2]), torch.tensor([1.0, 5.0]), n_items=4)
        >>> report = evaluate_ranking(model, train, test, threshold=4, n=2)  # the list is items 3 and 2; 2 is relevant
        >>> report.means["precision"], report.means["recall"], report.means["mrr"]
        (0.5, 1.0, 0.5)
    """
    require_relevant(test, threshold)
    users = test.user_counts.nonzero()[:, 0].cpu()
    recommended, _ = top_k(model, users, n, train if exclude is None else exclude, candidates=candidates)
    recommended = recommended.cpu()
    values = ranking_metrics(recommended, users, test, threshold, n=n, gain=gain)
    has_relevant = ~values["recall"].isnan()
    values = {name: value[has_relevant] for name, value in values.items()}
    candidates = torch.ones(model.n_items, dtype=torch.bool) if candidates is None else candidates.cpu()
    return RankingReport(
        n=n,
        threshold=threshold,
        users=users[has_relevant],
        values=values,
        means={name: float(ordered_mean(value)) for name, value in values.items()},
        intervals=bootstrap_intervals(values, resamples, generator),
        n_left_out=int((~has_relevant).sum()),
        catalogue_coverage=catalogue_coverage(recommended, candidates),
        novelty=float(novelty(recommended, train).nanmean()),
    )


def require_relevant(test: Ratings, threshold: float) -> None:
    """Check that some held-out rating is relevant.

    Raises:
        InputError: none is.
    """
    if not bool((test.values >= threshold).any()):
        highest = f"; the highest is {float(test.values.max()):g}" if len(test) else ""
        raise InputError(
            f"at least one held-out rating must be {threshold:g} or more (got {len(test):,} ratings{highest}); lower "
            "the threshold, or hold out more ratings"
        )
