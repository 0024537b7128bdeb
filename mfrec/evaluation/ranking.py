"""Ranking: how much of what users liked in a held-out part their top-N lists hold, and how near the top.

An item is relevant to a user whose rating of it in the held-out part is at or above a threshold.  For a user with R
relevant items, and a list with h_k = 1 where the item at place k = 1 … N is relevant, h_k = 0 where it is not,

    precision   Σ_k h_k / N
    recall      Σ_k h_k / R
    hit_rate    1 if any h_k is, else 0
    mrr         1 / the first k with h_k = 1, or 0 without one: the reciprocal rank, whose mean is the MRR
    map         Σ_k h_k (Σ_{l≤k} h_l / k) / R: the average precision, whose mean is the MAP
    ndcg        Σ_k h_k g_k / log₂(k + 1), divided by the most that N of the user's relevant items can reach

with g_k the gain of the item at place k, 1 unless another of `GAINS` is asked for.

These are trec_eval's P_N, recall_N, success_N, recip_rank of the list, map_cut_N and ndcg_cut_N, with which the tests
compare them.  (NDCG: Järvelin & Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques", with the discount
that is usual since Burges et al. 2005, "Learning to rank using gradient descent".)  R counts every relevant item, also
one that could not be recommended.  A user without any has no recall, and is left out of the means.  A list is an order:
ties between predictions were broken when it was made, by `top_n` in favour of the lower index.

Lists are of all items that a user may be recommended, not of a sample of them, by which models can come out in another
order (Krichene & Rendle 2020, "On sampled metrics for item recommendation").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import InputError, unknown
from mfrec.inference.top_k import top_n
from mfrec.model.factorization import MatrixFactorization, check_indices

# What finding a relevant item is worth to NDCG, by its rating: the same for all; the rating, as in trec_eval; or
# 2^rating − 1, as in Burges et al. 2005.
GAINS: dict[str, Callable[[Tensor], Tensor]] = {
    "binary": torch.ones_like,
    "linear": lambda ratings: ratings,
    "exponential": lambda ratings: torch.exp2(ratings) - 1,
}
# Resampled numbers held at a time: 2^22 in float64 are 32 MiB, and the positions drawn for them as many at most.
RESAMPLED = 2**22


@dataclass(frozen=True, eq=False)
class RankingReport:
    """What `evaluate_ranking` measured.

    n: the N of the lists.
    threshold: the lowest rating of a relevant item.
    users: (n_users,) the users with a relevant item, in ascending order; their values alone enter the means.
    values: (n_users,) float64 of each metric: "precision", "recall", "ndcg", "map", "mrr" and "hit_rate".
    means: each metric's mean over these users.
    intervals: each metric's 95 % bootstrap interval of the mean, as (low, high); NaN of a single user.
    n_left_out: how many users have a rating in the held-out part, but no relevant item.
    catalogue_coverage: share of the candidates that are in the list of at least one user, of those left out too.
    novelty: mean over the same lists of their items' mean self-information in bits; see `novelty`.
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
        """The number of users with a relevant item, over whom the means are."""
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
    """The ranking metrics of a model's top-N lists for all users with a rating in the held-out part.

    Args:
        train: what the model was trained on, whose counts tell how popular an item is.
        test: the held-out part.
        threshold: an item is relevant to a user who rated it so, or higher, in the held-out part.
        exclude: ratings whose items are not recommended to their users, such as the training and validation parts
            together; the training ratings unless given.
        candidates: (n_items,) bool, which items may be recommended; all of them by default.
        gain: the gains of NDCG, a name in `GAINS`.
        resamples: how often the users are drawn with replacement for the intervals.
        generator: the source of these draws, on the CPU.

    Raises:
        InputError: n is below 1, nobody has a relevant item, or gains are refused as by `ranking_metrics`.

    Examples:
        >>> tables = torch.tensor([[1.0]]), torch.tensor([[2.0], [5.0], [3.0], [4.0]])
        >>> model = MatrixFactorization.from_tables(*tables, biases=False, offset=None, scale=torch.tensor([1.0, 5.0]))
        >>> train = Ratings(torch.tensor([0]), torch.tensor([1]), torch.tensor([4.0]), n_users=1, n_items=4)
        >>> test = Ratings(torch.tensor([0, 0]), torch.tensor([0, 2]), torch.tensor([1.0, 5.0]), n_items=4)
        >>> report = evaluate_ranking(model, train, test, threshold=4, n=2)  # the list is items 3 and 2; 2 is relevant
        >>> report.means["precision"], report.means["recall"], report.means["mrr"]
        (0.5, 1.0, 0.5)
    """
    users = test.user_counts.nonzero()[:, 0].cpu()
    if not bool((test.values >= threshold).any()):
        highest = f"; the highest is {float(test.values.max()):g}, give a threshold up to that" if len(test) else ""
        raise InputError(f"none of {len(test):,} held-out ratings is {threshold:g} or more{highest}")
    recommended, _ = top_n(model, users, n, train if exclude is None else exclude, candidates=candidates)
    recommended = recommended.cpu()
    values = ranking_metrics(recommended, users, test, threshold, n=n, gain=gain)
    measured = ~values["recall"].isnan()
    values = {name: value[measured] for name, value in values.items()}
    candidates = torch.ones(model.n_items, dtype=torch.bool) if candidates is None else candidates.cpu()
    return RankingReport(
        n=n,
        threshold=threshold,
        users=users[measured],
        values=values,
        means={name: float(value.mean()) for name, value in values.items()},
        intervals=bootstrap_intervals(values, resamples, generator),
        n_left_out=int((~measured).sum()),
        catalogue_coverage=catalogue_coverage(recommended, candidates),
        novelty=float(novelty(recommended, train).nanmean()),
    )


def ranking_metrics(
    recommended: Tensor, users: Tensor, test: Ratings, threshold: float, *, n: int | None = None, gain: str = "binary"
) -> dict[str, Tensor]:
    """Each user's metrics of the module's docstring, by name.

    Args:
        recommended: (n_rows, n_columns) distinct item indices, best first, −1 where a list has ended, as of `top_n`.
        users: (n_rows,) the user of each list.
        test: the held-out part.
        threshold: an item is relevant to a user who rated it so, or higher, in the held-out part.
        n: the N of the metrics; the number of columns unless given.  Of longer lists the head is measured, and shorter
            ones, as of a catalogue of fewer than N items, have nothing relevant at the places that they lack.
        gain: the gains of NDCG, a name in `GAINS`; "binary" is 1 for every relevant item.

    Returns:
        (n_rows,) float64 on the CPU of each metric, NaN for users without a relevant item.

    Raises:
        InputError: n is below 1, lists and users differ in number, an index is not in the held-out part's tables, or a
            relevant item's gain is not above 0.
    """
    n = recommended.shape[1] if n is None else n
    if n < 1:
        raise InputError(f"n {n} measures nothing; give 1 or more")
    if len(recommended) != len(users):
        raise InputError(f"{len(recommended):,} lists for {len(users):,} users; give one of each")
    # On the CPU, whose sums have one order, and where float64 is sure to exist.
    recommended, users = recommended[:, :n].cpu().long(), users.cpu().long()
    check_indices("user", users, test.n_users)
    check_indices("item", recommended[recommended >= 0], test.n_items)
    relevant = test.select(test.values >= threshold).to("cpu")
    gains = _relevant_gains(relevant, gain)
    found = _gains_at(recommended, users, relevant, gains)
    n_relevant = relevant.user_counts[users].double()

    places = torch.arange(1, min(n, test.n_items) + 1, dtype=torch.float64)
    discounts = 1 / (places + 1).log2()
    places = places[: found.shape[1]]
    hits = (found > 0).double()
    values = {
        "precision": hits.sum(1) / n,
        "recall": hits.sum(1) / n_relevant,
        "ndcg": found @ discounts[: found.shape[1]] / _ideal_dcg(relevant, gains, discounts)[users],
        "map": (hits * hits.cumsum(1) / places).sum(1) / n_relevant,
        "mrr": (hits / places).amax(1),
        "hit_rate": hits.amax(1),
    }
    return {name: value.where(n_relevant > 0, torch.nan) for name, value in values.items()}


def _relevant_gains(relevant: Ratings, gain: str) -> Tensor:
    """(n_ratings,) the gain of each relevant rating, float64."""
    if gain not in GAINS:
        raise unknown("gain", gain, GAINS)
    gains = GAINS[gain](relevant.values.double())
    wrong = relevant.values[gains <= 0]
    if len(wrong):
        raise InputError(
            f"a relevant rating of {float(wrong[0]):g} has a {gain} gain that is not above 0; use gain 'binary', or a "
            "threshold above 0"
        )
    return gains


def _gains_at(recommended: Tensor, users: Tensor, relevant: Ratings, gains: Tensor) -> Tensor:
    """(n_rows, n_columns) the gain of each item of each list, 0 where it is not relevant or the list has ended."""
    # Ratings lie sorted by (user, item), and so do these keys.  The last stands for all that is not among them.
    beyond = torch.tensor([relevant.n_users * relevant.n_items])
    keys = torch.cat([relevant.users.long() * relevant.n_items + relevant.items, beyond])
    sought = torch.where(recommended >= 0, users[:, None] * relevant.n_items + recommended, beyond)
    at = torch.searchsorted(keys, sought)
    return torch.cat([gains, gains.new_zeros(1)])[at].where(keys[at] == sought, 0.0)


def _ideal_dcg(relevant: Ratings, gains: Tensor, discounts: Tensor) -> Tensor:
    """(n_users,) the discounted gains of each user's relevant items, the largest first, cut where discounts end."""
    by_gain = gains.argsort(descending=True, stable=True)
    order = by_gain[relevant.users[by_gain].argsort(stable=True)]
    users = relevant.users[order].long()
    place = torch.arange(len(order)) - relevant.by_user.crow[users]
    head = place < len(discounts)
    discounted = gains[order[head]] * discounts[place[head]]
    return torch.bincount(users[head], discounted, minlength=relevant.n_users)


def catalogue_coverage(recommended: Tensor, candidates: Tensor) -> float:
    """Share of the items that may be recommended, (n_items,) bool, that are in at least one list; NaN of none.

    The lists are as those of `ranking_metrics`.

    Examples:
        >>> catalogue_coverage(torch.tensor([[0, 2], [2, -1]]), torch.tensor([True, True, True, True]))
        0.5
    """
    listed = torch.zeros_like(candidates, dtype=torch.bool)
    listed[recommended[recommended >= 0].long()] = True
    return float(listed[candidates].double().mean())


def novelty(recommended: Tensor, train: Ratings) -> Tensor:
    """(n_rows,) mean self-information of each list's items, in bits: what it tells that a random user rated them.

        mean over the list of −log₂(n_i / n_users)

    with n_i the item's training ratings, 1 at least: an item without any is as novel as one that a single user rated.
    NaN of an empty list; lists are as those of `ranking_metrics`.  (Zhou et al. 2010, "Solving the apparent
    diversity-accuracy dilemma of recommender systems", PNAS 107(10).)
    """
    bits = (train.n_users / train.item_counts.cpu().clamp_min(1).double()).log2()
    recommended = recommended.cpu().long()
    filled = recommended >= 0
    return (bits[recommended.clamp_min(0)] * filled).sum(1) / filled.sum(1)


def bootstrap_intervals(
    values: dict[str, Tensor], resamples: int = 1000, generator: torch.Generator | None = None
) -> dict[str, tuple[float, float]]:
    """(low, high) of each metric's mean over users: the 95 % percentile interval over users drawn with replacement.

    (Efron & Tibshirani 1993, "An introduction to the bootstrap", section 13.3.)  Every draw of users is that of all
    metrics.  What another split or training would change is not in it.  One user tells nothing of others: NaN.

    Args:
        values: (n_users,) of each metric, the same users in each.
        resamples: how often users are drawn.
        generator: on the CPU; the interval is a function of its state.  Seeded with 0 unless given.
    """
    import scipy.stats  # a third of a second of imports that only this needs

    numbers = torch.stack(list(values.values())).double().cpu().numpy()
    if numbers.shape[1] < 2:
        return dict.fromkeys(values, (float("nan"), float("nan")))
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    interval = scipy.stats.bootstrap(
        (numbers,),
        np.mean,
        axis=-1,
        n_resamples=resamples,
        batch=max(1, RESAMPLED // numbers.size),
        confidence_level=0.95,
        method="percentile",
        # The name that scipy before 1.15 knows too.
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return dict(zip(values, zip(interval.low.tolist(), interval.high.tolist(), strict=True), strict=True))
