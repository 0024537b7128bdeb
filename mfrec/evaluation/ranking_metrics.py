"""Ranking metrics of one user's list: how many relevant items it holds, and how near the top.

An item is relevant to a user whose held-out rating of it is at or above a threshold.  For a user with R relevant items,
let h_k = 1 if the item at position k = 1 … n of the list is relevant, else h_k = 0:

    precision   Σ_k h_k / n
    recall      Σ_k h_k / R
    hit_rate    1 if any h_k is 1, else 0
    mrr         1 / the first k with h_k = 1, else 0: the reciprocal rank, whose mean is the MRR
    map         Σ_k h_k (Σ_{l≤k} h_l / k) / R: the average precision, whose mean is the MAP
    ndcg        Σ_k h_k g_k / log₂(k + 1), divided by the maximum over all lists of n items

with g_k the gain of the item at position k: 1, or another function of its rating in `GAINS`.

These are P_n, recall_n, success_n, recip_rank, map_cut_n and ndcg_cut_n of trec_eval; the tests compare them.
(NDCG: Järvelin & Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques", with the discount of Burges et
al. 2005, "Learning to rank using gradient descent".)  R counts every relevant item, also those that cannot be
recommended.  Users without relevant items have no recall and are left out of means.  Ties between predictions are
broken when the list is made; `top_k` prefers the lower index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, unknown
from mfrec.model.pair_products import check_indices

# The gain of a relevant item in NDCG, given its rating: 1; the rating, as in trec_eval; or 2^rating − 1, as in Burges
# et al. 2005.
GAINS: dict[str, Callable[[Tensor], Tensor]] = {
    "binary": torch.ones_like,
    "linear": lambda ratings: ratings,
    "exponential": lambda ratings: torch.exp2(ratings) - 1,
}


@dataclass(frozen=True, eq=False)
class JudgedLists:
    """Lists of recommended items with the gain at each position: what ranking metrics are functions of.

    Attributes:
        n: the n of the metrics; lists may be shorter.
        gains: (n_lists, n_columns) float64, the gain at each position; 0 if the item is not relevant.
        n_relevant: (n_lists,) float64, the number of relevant items R of each list's user.
        discounts: (at least n_columns,) 1 / log₂(k + 1) for k = 1, 2, ….
        ideal_dcg: (n_lists,) the largest discounted gain of any list of n items.
    """

    n: int
    gains: Tensor
    n_relevant: Tensor
    discounts: Tensor
    ideal_dcg: Tensor

    @property
    def hits(self) -> Tensor:
        """(n_lists, n_columns) h_k, as float64."""
        return (self.gains > 0).double()

    @property
    def positions(self) -> Tensor:
        """(n_columns,) k = 1, 2, …, as float64."""
        return torch.arange(1, self.gains.shape[1] + 1, dtype=torch.float64)


@dataclass(frozen=True)
class RankingMetric:
    """A row of `RANKING_METRICS`: a label, and a function that returns each list's value, (n_lists,)."""

    label: str
    function: Callable[[JudgedLists], Tensor]


RANKING_METRICS: dict[str, RankingMetric] = {
    "precision": RankingMetric("precision", lambda lists: lists.hits.sum(1) / lists.n),
    "recall": RankingMetric("recall", lambda lists: lists.hits.sum(1) / lists.n_relevant),
    "ndcg": RankingMetric(
        "NDCG", lambda lists: lists.gains @ lists.discounts[: lists.gains.shape[1]] / lists.ideal_dcg
    ),
    "map": RankingMetric(
        "MAP", lambda lists: (lists.hits * lists.hits.cumsum(1) / lists.positions).sum(1) / lists.n_relevant
    ),
    "mrr": RankingMetric("MRR", lambda lists: (lists.hits / lists.positions).amax(1)),
    "hit_rate": RankingMetric("hit rate", lambda lists: lists.hits.amax(1)),
}


def relevance_threshold(rating_range: tuple[float, float]) -> float:
    """The default lowest rating of a relevant item: three quarters up the rating range.

    Raises:
        InputError: the range is not finite.

    Examples:
        >>> relevance_threshold((1, 5))
        4.0
    """
    low, high = rating_range
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise InputError(f"the rating range must be finite to rank by relevance (got {low:g} to {high:g})")
    return low + 0.75 * (high - low)


def ranking_metrics(
    recommended: Tensor, users: Tensor, test: Ratings, threshold: float, *, n: int | None = None, gain: str = "binary"
) -> dict[str, Tensor]:
    """Every metric of `RANKING_METRICS` for each list.

    Args:
        recommended: (n_lists, n_columns) distinct item indices, best first, −1 after the end of a list, as `top_k`
            returns them.
        users: (n_lists,) the user of each list.
        test: the held-out ratings.
        threshold: the lowest rating of a relevant item.
        n: the n of the metrics, by default the number of columns.  Longer lists are cut; positions that shorter lists
            lack count as not relevant.
        gain: the gains of NDCG, a name in `GAINS`.

    Returns:
        (n_lists,) float64 on the CPU for each metric, NaN for users without relevant items.

    Raises:
        InputError: n is below 1, lists and users differ in number, an index is out of range, or a relevant item's gain
            is not positive.
    """
    n = recommended.shape[1] if n is None else n
    if n < 1:
        raise InputError(f"n must be at least 1 (got {n})")
    if len(recommended) != len(users):
        raise InputError(f"there must be one list per user (got {len(recommended):,} for {len(users):,} users)")
    # On the CPU, whose sums have one order, and where float64 is sure to exist.
    recommended, users = recommended[:, :n].cpu().long(), users.cpu().long()
    check_indices("user", users, test.n_users)
    check_indices("item", recommended[recommended >= 0], test.n_items)
    relevant = test.select(test.values >= threshold).to("cpu")
    gains = _relevant_gains(relevant, gain)
    positions = torch.arange(1, min(n, test.n_items) + 1, dtype=torch.float64)
    discounts = 1 / (positions + 1).log2()
    lists = JudgedLists(
        n=n,
        gains=_gains_at(recommended, users, relevant, gains),
        n_relevant=relevant.user_counts[users].double(),
        discounts=discounts,
        ideal_dcg=_ideal_dcg(relevant, gains, discounts)[users],
    )
    return {
        name: metric.function(lists).where(lists.n_relevant > 0, torch.nan) for name, metric in RANKING_METRICS.items()
    }


def _relevant_gains(relevant: Ratings, gain: str) -> Tensor:
    """(n_ratings,) the gain of each relevant rating, float64."""
    if gain not in GAINS:
        raise unknown("gain", gain, GAINS)
    gains = GAINS[gain](relevant.values.double())
    wrong = relevant.values[gains <= 0]
    if len(wrong):
        raise InputError(
            f"the {gain} gain of a relevant rating must be positive (got a rating of {float(wrong[0]):g}); use the "
            "binary gain, or raise the threshold"
        )
    return gains


def _gains_at(recommended: Tensor, users: Tensor, relevant: Ratings, gains: Tensor) -> Tensor:
    """(n_lists, n_columns) the gain of each item of each list, 0 if it is not relevant or the list has ended."""
    # Ratings are sorted by (user, item), and so are these keys.  The last key stands for every other pair.
    beyond = torch.tensor([relevant.n_users * relevant.n_items])
    keys = torch.cat([relevant.users.long() * relevant.n_items + relevant.items, beyond])
    sought = torch.where(recommended >= 0, users[:, None] * relevant.n_items + recommended, beyond)
    at = torch.searchsorted(keys, sought)
    return torch.cat([gains, gains.new_zeros(1)])[at].where(keys[at] == sought, 0.0)


def _ideal_dcg(relevant: Ratings, gains: Tensor, discounts: Tensor) -> Tensor:
    """(n_users,) the discounted gains of each user's relevant items, largest first, up to the last discount."""
    by_gain = gains.argsort(descending=True, stable=True)
    order = by_gain[relevant.users[by_gain].argsort(stable=True)]
    users = relevant.users[order].long()
    position = torch.arange(len(order)) - relevant.pattern.crow[users]
    head = position < len(discounts)
    discounted = gains[order[head]] * discounts[position[head]]
    return torch.bincount(users[head], discounted, minlength=relevant.n_users)
