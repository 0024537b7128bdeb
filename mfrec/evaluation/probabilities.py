"""Probabilities of ratings against observed ratings: scores, calibration of each level, coverage of intervals.

Let P_k be the probability of level k = 1 … K of a rating, F_k = P_1 + … + P_k, and y its observed level:

    log-likelihood   log P_y, the natural logarithm
    RPS              Σ_k (F_k − 1{y ≤ k})², not divided by K − 1
    PIT              u = F_{y−1} + v P_y with v ~ U(0, 1)

and report means over ratings.  A higher log-likelihood and a lower ranked probability score (RPS) are better.  With
levels one star apart, the RPS is the integral of (F(x) − 1{y ≤ x})² in stars.  (Epstein 1969, "A scoring system for
probability forecasts of ranked categories".)

The randomized probability integral transform u is uniform if the probabilities are right.  The central c-interval
contains a rating if |u − ½| ≤ c/2, which then happens with probability c.  (A set of whole levels contains more than
c.)  Nothing is drawn: all shares are expectations over v.  The average distribution function of u is

    F̄(u) = mean over ratings of min(max((u − F_{y−1}) / P_y, 0), 1)

(Czado, Gneiting & Held 2009, "Predictive model assessment for count data", equation 2.)  Continuous ratings have
u = Φ((y − mean) / std).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.posteriors.base import Posterior
from mfrec.posteriors.levels import nearest_levels
from mfrec.sums import ordered_mean

# The probabilities of the central intervals that are reported.
INTERVALS = (0.5, 0.8, 0.9, 0.95)
# Calibration compares this many groups of ratings with similar probabilities; the PIT's histogram has as many bars.
N_GROUPS = 10


@dataclass(frozen=True)
class LevelCalibration:
    """The probabilities of one level against the share of ratings that have it.

    Attributes:
        level: the rating.
        predicted: the mean probability.
        observed: the share of ratings at this level.
        error: the expected calibration error Σ_g n_g/n |predicted − observed| over groups g of similar probabilities.
        chance: the mean error of calibrated probabilities with groups of these sizes, in the normal approximation.
        groups: the mean probability and the observed share of each group, by ascending probability.
    """

    level: float
    predicted: float
    observed: float
    error: float
    chance: float
    groups: list[tuple[float, float]]


@dataclass(frozen=True)
class ProbabilityReport:
    """The result of `evaluate_probabilities`.

    Attributes:
        n_ratings: the number of ratings.
        n_between: the number of ratings that are not a level; each counts as the nearest level.
        log_likelihood: the mean log-likelihood of a rating; None for continuous ratings.
        ranked_probability_score: the mean RPS; None for continuous ratings.
        levels: the calibration of each level; empty for continuous ratings.
        coverage: the share of ratings in the central interval of each probability in `INTERVALS`.
        pit: the share of PIT values in each of `N_GROUPS` intervals of equal length; all alike if calibrated.
    """

    n_ratings: int
    n_between: int
    log_likelihood: float | None
    ranked_probability_score: float | None
    levels: list[LevelCalibration]
    coverage: dict[float, float]
    pit: list[float]


@torch.no_grad()
def evaluate_probabilities(posterior: Posterior, ratings: Ratings, levels: Tensor | None) -> ProbabilityReport:
    """The scores and the calibration of a posterior's probabilities of ratings.

    Args:
        ratings: the held-out ratings, at least one.
        levels: (K,) the levels of the training ratings; None if they are continuous, see `rating_levels`.

    Raises:
        InputError: the posterior has no standard deviations.
    """
    if levels is None:
        posterior.require_std()
        std = posterior.std(ratings.users, ratings.items, timestamps=ratings.timestamps).double()
        errors = ratings.values.double() - posterior.mean_model().predict_observed(ratings).double()
        return _report(torch.special.ndtr(errors / std), torch.zeros_like(std))
    probabilities = posterior.level_probabilities(ratings.users, ratings.items, levels, ratings.timestamps)
    return report_of_levels(probabilities, ratings.values, levels)


def report_of_levels(probabilities: Tensor, values: Tensor, levels: Tensor) -> ProbabilityReport:
    """The scores and the calibration of probabilities of levels.

    Args:
        probabilities: (n, K), each row adding up to 1.
        values: (n,) observed ratings.
        levels: (K,) ascending.

    Examples:
        >>> half = torch.full((2, 2), 0.5, dtype=torch.float64)
        >>> report = report_of_levels(half, torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        >>> round(report.log_likelihood, 4), report.ranked_probability_score, report.coverage[0.8]
        (-0.6931, 0.25, 0.8)
    """
    observed, probabilities = nearest_levels(values, levels), probabilities.double()
    cumulative = probabilities.cumsum(1)
    below, at = (_observed_column(matrix, observed) for matrix in (cumulative - probabilities, probabilities))
    return _report(
        below,
        at,
        n_between=int((levels.to(values)[observed] != values).sum()),
        log_likelihood=float(ordered_mean(at.log())),
        ranked_probability_score=_ranked_probability_score(cumulative, observed),
        levels=[level_calibration(float(level), probabilities[:, k], observed == k) for k, level in enumerate(levels)],
    )


def _report(
    below: Tensor,
    at: Tensor,
    n_between: int = 0,
    log_likelihood: float | None = None,
    ranked_probability_score: float | None = None,
    levels: Sequence[LevelCalibration] = (),
) -> ProbabilityReport:
    return ProbabilityReport(
        len(below),
        n_between,
        log_likelihood,
        ranked_probability_score,
        list(levels),
        {c: pit_share(below, at, (1 - c) / 2, (1 + c) / 2) for c in INTERVALS},
        [pit_share(below, at, g / N_GROUPS, (g + 1) / N_GROUPS) for g in range(N_GROUPS)],
    )


def _observed_column(matrix: Tensor, observed: Tensor) -> Tensor:
    return matrix.gather(1, observed[:, None])[:, 0]


def _ranked_probability_score(cumulative: Tensor, observed: Tensor) -> float:
    """The mean of Σ_k (F_k − 1{y ≤ k})², (n, K) and (n,); the last summand is 0."""
    reached = observed[:, None] <= torch.arange(cumulative.shape[1], device=observed.device)
    return float(ordered_mean((cumulative - reached.double())[:, :-1].square_().sum(1)))


def pit_share(below: Tensor, at: Tensor, low: float, high: float) -> float:
    """F̄(high) − F̄(low): the share of PIT values from low to high.

    Args:
        below: (n,) the probability of less than the observed rating; from 0 to 1.
        at: (n,) the probability of the observed rating; 0 if ratings are continuous.
    """
    # Steps at a PIT value of `below` where the observed rating has no probability; the end 1 takes in a value of 1.
    starts, ends = (
        ((u - below) / at).clamp_(0, 1).where(at > 0, (below < u).double()) if u < 1 else torch.ones_like(below)
        for u in (low, high)
    )
    return float(ordered_mean(ends - starts))


def level_calibration(level: float, probabilities: Tensor, is_observed: Tensor) -> LevelCalibration:
    """The calibration of one level, in at most `N_GROUPS` groups of about equal size.

    Equal probabilities are in one group.  (Equal sizes: Nixon et al. 2019, "Measuring calibration in deep learning".)

    Args:
        probabilities: (n,) the probability of the level.
        is_observed: (n,) bool, whether the rating is at this level.
    """
    # On the CPU, whose sums have one order.
    probabilities, is_observed = probabilities.double().cpu().contiguous(), is_observed.double().cpu()
    n = len(probabilities)
    ordered = probabilities.sort().values
    starts = ordered[[g * n // N_GROUPS for g in range(1, N_GROUPS)]].unique()
    group = torch.bucketize(probabilities, starts, right=True)
    sizes, sums, counts, variances = (
        torch.bincount(group, weights, minlength=len(starts) + 1)
        for weights in (None, probabilities, is_observed, probabilities * (1 - probabilities))
    )
    return LevelCalibration(
        level,
        float(ordered_mean(probabilities)),
        float(is_observed.mean()),
        float((sums - counts).abs().sum() / n),
        # The mean of |N(0, s²)| is s √(2/π).
        float(variances.sqrt().sum() * (2 / torch.pi) ** 0.5 / n),
        [
            (float(total / size), float(count / size))
            for total, count, size in zip(sums, counts, sizes, strict=True)
            if size
        ],
    )
